"""What goes wrong, in the words and codes that OpenAI's clients know."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Problem(Exception):
    """An answer that is an error: a status, and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def answer(self, **headers: str) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body, self.status, headers={**self.headers, **headers})


def overloaded(load: int) -> Problem:
    """The queue is full: try again."""
    message = f"The server has {load} texts to write already. Please try again later."
    return Problem(429, message, kind="requests", code="rate_limit_exceeded", headers={"retry-after": "1"})


class ServerFault(Problem):
    """It is not the request's fault; what exactly happened stands in the log, not in the answer."""

    def __init__(self, message: str = "", status: int = 500, **headers: str) -> None:
        message = message or "The server had an error while processing your request."
        super().__init__(status, message, kind="server_error", headers=headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """What the client can mend."""
    return Problem(400, message, param=param, code=code)


def too_long(context: int, prompt: int, asked: int, param: str) -> Problem:
    """A prompt and a number of tokens that do not fit into the context."""
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + asked} tokens "
        f"({prompt} in the {param}, {asked} in the completion). Please reduce the length of the {param} or completion."
    )
    return bad_request(message, param, "context_length_exceeded")


def wrong_key(shown: str | None) -> Problem:
    """No key, or none of ours; a key is shown by its ends only."""
    headers = {"www-authenticate": 'Basic realm="deepseek-v3", charset="UTF-8"'}
    if shown is None:
        message = "You didn't provide an API key. Give it in an Authorization header: Authorization: Bearer YOUR_KEY."
        return Problem(401, message, headers=headers)
    masked = f"{shown[:3]}{'*' * 8}{shown[-4:]}" if len(shown) > 16 else "*" * len(shown)
    message = f"Incorrect API key provided: {masked.encode('ascii', 'replace').decode()}."
    return Problem(401, message, code="invalid_api_key", headers=headers)


def no_model(name: str) -> Problem:
    """A model that is not served here."""
    shown = name[:200].encode("ascii", "replace").decode()
    message = f"The model `{shown}` does not exist or you do not have access to it."
    return Problem(404, message, param="model", code="model_not_found")
