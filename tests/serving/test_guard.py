"""What stands before the routes: the key, the host, size and depth; by tricks that others fell for."""

import base64
import hmac
import json
import socket
import time

import pytest
from serving_harness import run_server

KEY = "sk-a-key-of-some-length-0123456789"


@pytest.fixture(scope="module")
def locked(model, tokenizer):
    """A server with two keys."""
    with run_server(model, tokenizer, api_key=("other-key-12345", KEY)) as running:
        yield running


def basic(password):
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_readiness_are_open(locked, path):
    assert locked.get(path)[0] == 200


PATHS = [
    *("/", "/metrics", "/live", "/v1/models", "/v1/models/tiny", "/openapi.json", "/docs", "/nothing"),
    *("//health", "/health/", "/HEALTH", "/health/../v1/models", "/v1/models?/health", "/v1/models#/health"),
    *("/health%2f", "/%68ealth/", "/health;x", "/./health", "/health%00", "/health%3f", "/v1/../health", "*"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT"])
def test_everything_else_is_behind_the_key(locked, path, method):
    assert locked.ask(method, path)[0] == 401


def test_an_open_path_written_in_codes_is_that_path_and_nothing_more(locked):
    """The router and the guard read the same decoded path."""
    assert locked.ask("GET", "/%68ealth")[2] == {"status": "ok"}


@pytest.mark.parametrize(
    "shown", [f"Bearer {KEY}", "Bearer other-key-12345", f"bearer {KEY}", f"Bearer  {KEY}", basic(KEY)]
)
def test_a_key_opens(locked, shown):
    assert locked.get("/v1/models", authorization=shown)[0] == 200


@pytest.mark.parametrize(
    "shown",
    [
        *("", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}", KEY),
        *(f"Token {KEY}", f"Bearer {KEY},{KEY}", f"Bearer {KEY} {KEY}", "Basic", "Basic !!!", basic(KEY + "x")),
        *(f"Basic {KEY}", f"Bearer {basic(KEY)[6:]}", "Bearer \xe9\xff", "Bearer null", "Bearer " + "x" * 9000),
    ],
)
def test_no_other_words_open(locked, shown):
    status, _, said = locked.ask("GET", "/v1/models", authorization=shown)
    assert status == 401
    assert said["error"]["code"] in (None, "invalid_api_key")
    assert KEY not in json.dumps(said)


def test_a_wrong_key_is_told_in_openais_words(locked):
    status, said = locked.get("/v1/models", authorization="Bearer wrong")
    assert (status, said["error"]["code"], said["error"]["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert said["error"]["message"].startswith("Incorrect API key provided: ")
    assert locked.get("/v1/models")[1]["error"]["message"].startswith("You didn't provide an API key")


def test_a_wrong_key_is_told_when_all_was_sent_else_the_close_resets_the_connection(locked):
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {locked.host}\r\nauthorization: Bearer x\r\n"
    with socket.create_connection((locked.host, locked.port), timeout=5) as client:
        client.sendall((head + "content-type: application/json\r\ncontent-length: 20\r\n\r\n").encode() + b"[" * 10)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(5)
        client.sendall(b"]" * 10)
        assert client.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_the_description_of_the_routes_says_which_want_a_key(locked, server):
    status, about = locked.get("/openapi.json", authorization=f"Bearer {KEY}")
    assert status == 200
    wanted = {path for path, methods in about["paths"].items() if all("security" in one for one in methods.values())}
    assert wanted == set(about["paths"]) - {"/health", "/ready"}
    assert "security" not in json.dumps(server.get("/openapi.json")[1])


def send_raw(server, head, body=b""):
    """Send bytes; return all that comes."""
    with server.connect() as line:
        line.sendall(head + body)
        line.settimeout(10)
        parts = []
        try:
            while part := line.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


@pytest.mark.parametrize(
    "more",
    [
        f"Host: x\r\nAuthorization: Bearer {KEY}\r\nAuthorization: Bearer no",  # which of two?
        f"Host: x\r\nX-Forwarded-For: 127.0.0.1\r\nX-Authorization: Bearer {KEY}",
        "Host: 127.0.0.1\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health",
        "Host: localhost/health",
        "Host: x@/health",
    ],
)
def test_no_header_takes_the_keys_place(locked, more):
    answer = send_raw(locked, f"GET /v1/models HTTP/1.1\r\n{more}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_every_key_is_compared_in_constant_time_whichever_is_shown(locked, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    for shown in (KEY, "other-key-12345", "x"):
        locked.get("/v1/models", authorization=f"Bearer {shown}")
    assert compared == [b"other-key-12345", KEY.encode()] * 3


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.7"]
)
def test_without_a_key_a_foreign_host_is_refused(server, host):
    """A page from elsewhere whose name points at this machine must not get through a browser here."""
    status, said = server.get("/v1/models", host=host)
    assert (status, said["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:8000", "127.1.2.3", "[::1]:80"])
def test_the_names_of_this_machine_are_served(server, host):
    assert server.get("/v1/models", host=host)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_that_a_foreign_form_could_send_is_refused(server, kind):
    status, said = server.post("/v1/completions", {"model": "tiny", "prompt": "a"}, **{"content-type": kind})
    assert status == 415, said


def test_a_charset_may_follow_the_kind(server):
    kind = {"content-type": "application/json; charset=utf-8"}
    assert server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1}, **kind)[0] == 200


def nest(depth, open_="[", close="]"):
    return (open_ * depth + close * depth).encode()


@pytest.mark.parametrize(
    "body",
    [
        nest(100_000),
        nest(65),
        b"[" * 3_000_000,
        b'{"a":' * 100_000,
        b"[{" * 40 + b"}]" * 40,
        b'{"model": "tiny", "prompt": "a", "metadata": ' + nest(70) + b"}",
        b'["\\"' + b"[" * 99 + b'", ' + nest(80) + b"]",
    ],
    ids=range(7),
)
def test_deep_json_is_refused_before_it_is_parsed(server, body):
    began = time.thread_time()
    status, said = server.post("/v1/completions", body)
    assert status == 400
    assert "deeper than 64" in said["error"]["message"]
    assert time.thread_time() - began < 2


@pytest.mark.parametrize("prompt", ["[" * 500, "{" * 99 + '"', '\\"[[[' * 50, "]" * 70, "\\" * 71])
def test_brackets_in_a_text_are_text(server, prompt):
    status, said = server.post("/v1/completions", {"model": "tiny", "prompt": prompt[:100], "max_tokens": 1})
    assert status == 200, said


def test_a_large_body_is_refused_by_its_announced_and_by_its_real_size(server):
    status, said = server.post("/v1/completions", b" " * (2**22 + 1))
    assert (status, said["error"]["code"]) == (413, "request_too_large")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = send_raw(server, head + b"Content-Length: 99999999999999999999999\r\n\r\n")
    assert answer.split()[1] in (b"413", b"400")
    chunk = b"%x\r\n%s\r\n" % (2**16, b" " * 2**16)
    answer = send_raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 70 + b"0\r\n\r\n")
    assert answer.split()[1] == b"413"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 2**17 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(9000)) + b"\r\n",
        b"GET /" + b"x" * 2**17 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 99 + b"\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_not_http_gets_an_error_object_and_the_door(server, raw):
    answer = send_raw(server, raw)
    assert answer == b"" or answer.split()[1] in (b"400", b"431")
    if answer:
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["type"] == "invalid_request_error"
    assert server.get("/health")[0] == 200


def test_two_ways_to_end_a_body_do_not_smuggle_a_second_request(locked):
    """Length and chunks together: whatever is read, the second request is not answered without a key."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(inner) + 5}"
    )
    answer = send_raw(locked, head.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner)
    assert answer.count(b"HTTP/1.1 200") == 0


def test_an_upgrade_is_not_followed(locked):
    more = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert send_raw(locked, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + more).startswith(b"HTTP/1.1 401")


def test_every_answer_forbids_guessing_and_frames(server):
    for path in ("/", "/health", "/nothing"):
        _, headers, _ = server.ask("GET", path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
    assert "default-src 'none'" in server.ask("GET", "/")[1]["content-security-policy"]


def test_the_page_asks_nobody_else(server):
    status, _, page = server.ask("GET", "/")
    assert status == 200
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "src=" not in page
    assert "@import" not in page


def test_a_half_closed_connection_is_answered_or_closed_and_frees_its_place(server):
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 100}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for cut in (10, len(head), len(head) + 5, len(head) + len(body)):
        with server.connect() as line:
            line.sendall((head.encode() + body)[:cut])
            line.shutdown(socket.SHUT_WR)
            line.settimeout(10)
            line.recv(65536)
    assert server.wait_until(lambda: server.worker.load == 0)
