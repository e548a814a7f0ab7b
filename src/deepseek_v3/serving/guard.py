"""What stands in front of every route: the key, the host, the size and depth of what is sent.

    app = Guard(app, GuardOptions(keys=["secret"]), metrics)

Only /health and /ready are open, and only by exactly these paths. A key comes as `Bearer KEY`, or as the password of
`Basic`, which is what a browser can send. Without keys the server listens on this machine alone, and a page from
elsewhere must not use it through a browser here: so the host must be a name of this machine, and a body must be JSON,
which no foreign form can send.
"""

import base64
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from deepseek_v3.serving.metrics import Metrics
from deepseek_v3.serving.problems import Problem, bad_request, wrong_key

OPEN_PATHS = ("/health", "/ready")
KNOWN_PATHS = (*OPEN_PATHS, "/", "/metrics", "/live", "/v1/models", "/v1/completions", "/v1/chat/completions")
LOCAL_HOSTS = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
TEXTS, PAIRS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL), re.compile(rb"\[\]|\{\}")
HEAD_BYTES, HEAD_LINES = 2**15, 100
READ_ON = 8  # times the limit of a body: so much is read and dropped, for a client listens only when all is sent
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


@dataclass(frozen=True)
class GuardOptions:
    """Who may ask, and how much a request may hold.

    Attributes:
        keys: any of them opens; none means that only this machine is served.
        depth: of lists and objects within each other.
    """

    keys: Sequence[str] = ()
    body_bytes: int = 2**22
    depth: int = 64


class Guard:
    """An ASGI application around another one.

    Attributes:
        app, worker: what stands behind it.
    """

    def __init__(self, app: Any, options: GuardOptions, metrics: Metrics, worker: Any) -> None:
        self.app, self.options, self.metrics, self.worker = app, options, metrics, worker
        self.keys = [key.encode() for key in options.keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it with an error."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
                self.metrics.answers.labels(path, message["status"]).inc()
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        left = self.options.body_bytes  # read on so far when a head is refused: a close with unread bytes is a reset,
        try:  # and the client would be told of a lost connection, not of its wrong key
            self.check_head(scope)
            left = 0
            body = await self.read_body(scope, receive)
        except Problem as problem:
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
            return await problem.answer(connection="close")(scope, receive, told)
        if body is None:  # the client is gone
            return None
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return rest.pop() if rest else await receive()

        return await self.app(scope, again, told)

    def check_head(self, scope: Any) -> None:
        """Check host, key, kind and announced size.

        Raises:
            Problem: what is wrong.
        """
        if scope["path"] in OPEN_PATHS:
            return
        if len(scope["headers"]) > HEAD_LINES or sum(len(n) + len(v) for n, v in scope["headers"]) > HEAD_BYTES:
            raise Problem(431, "The head of this request is too large.")
        headers = Headers(scope=scope)
        if self.keys:
            self.check_key(headers.getlist("authorization"))
        elif not all(LOCAL_HOSTS.fullmatch(host) for host in headers.getlist("host") or [""]):
            raise Problem(403, "This server answers only to the names of its own machine.", code="wrong_host")
        kind = ",".join(headers.getlist("content-type")).split(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise Problem(415, "The body must be JSON: send content-type: application/json.")
        length = "".join(headers.getlist("content-length"))
        if len(length) > 18 or (length.isdecimal() and int(length) > READ_ON * self.options.body_bytes):
            raise self.too_large()

    def check_key(self, shown: list[str]) -> None:
        """Compare the key with each of ours, in a time that does not depend on where they differ.

        Raises:
            Problem: 401.
        """
        scheme, _, rest = (shown[0] if len(shown) == 1 else "").partition(" ")
        key = rest.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except ValueError:
                key = b""
        right = [hmac.compare_digest(key, ours) for ours in self.keys]
        if not any(right) or scheme.lower() not in ("bearer", "basic"):
            raise wrong_key(key.decode("utf-8", "replace") if key else None)

    async def read_body(self, scope: Any, receive: Any) -> bytes | None:
        """Return the whole body, None if the client went away before its end.

        Raises:
            Problem: too large, too deep, or letters that are none.
        """
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self.options.body_bytes:
                body += part
            elif not more or size > READ_ON * self.options.body_bytes:
                raise self.too_large()
        if scope["method"] == "POST":
            check_json(bytes(body), self.options.depth)
        return bytes(body)

    def too_large(self) -> Problem:
        """The body is larger than a request may be."""
        return Problem(413, f"The body is larger than {self.options.body_bytes:,} bytes.", code="request_too_large")


def check_json(body: bytes, depth: int) -> None:
    """Refuse JSON that nests too deeply, before a parser follows it, and texts with half a character.

    Raises:
        Problem: what is wrong.
    """
    brackets = re.sub(rb"[^\[\]{}]+", b"", TEXTS.sub(b"", body))
    for _ in range(depth):
        before, brackets = brackets, PAIRS.sub(b"", brackets)  # the innermost level
        if brackets in (b"", before):
            break
    if brackets:
        raise bad_request(f"The JSON body nests lists and objects deeper than {depth}, or does not close them.")
    if rb"\ud" in body.lower():
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise bad_request("The JSON body holds half of a surrogate pair, which is no character.") from None
        except (ValueError, RecursionError):
            return  # whoever parses it says so
