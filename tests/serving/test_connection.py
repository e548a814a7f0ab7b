"""One timer a connection: what dawdles is closed, what works is left alone."""

import asyncio
import json
import time

import pytest
from serving_harness import run_server

from deepseek_v3.serving.connection import Times, WatchedConnection

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Hasty(WatchedConnection):
    times = Times(header=0.4, body=0.4, write=0.5, idle=0.4, connections=150)


@pytest.fixture(scope="module")
def hasty(model, tokenizer):
    with run_server(model, tokenizer, connection=Hasty) as running:
        yield running


def is_closed(line, seconds=20):
    """Wait until the other side has closed."""
    line.settimeout(seconds)
    try:
        while line.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def drip(line, data, pause=0.1, seconds=8):
    """Send byte by byte until the other side has closed; return after how long it did, or None."""
    began = time.monotonic()
    line.settimeout(0.001)
    for i in range(len(data)):
        if time.monotonic() - began > seconds:
            return None
        try:
            line.sendall(data[i : i + 1])
            if line.recv(100) == b"":
                return time.monotonic() - began
        except TimeoutError:
            pass
        except OSError:
            return time.monotonic() - began
        time.sleep(pause)
    return None


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /he", HEAD, HEAD + b"Content-Length: 99\r\n\r\n", HEAD + b"Content-Length: 99\r\n\r\n{"],
    ids=["nothing", "a line", "a head", "no body", "half a body"],
)
def test_who_sends_nothing_more_is_closed(hasty, sent):
    with hasty.connect() as line:
        line.sendall(sent)
        assert is_closed(line)


@pytest.mark.parametrize("before", [b"", HEAD + b"Content-Length: 9999\r\n\r\n"], ids=["head", "body"])
def test_bytes_that_trickle_buy_no_time(hasty, before):
    data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200
    with hasty.connect() as line:
        line.sendall(before)
        assert drip(line, data) is not None


def test_an_idle_connection_is_closed_and_a_busy_one_serves_on(hasty):
    with hasty.connect() as line:
        for _ in range(5):
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not line.recv(65536).endswith(b'{"status":"ok"}'):
                pass
            time.sleep(0.1)
        assert is_closed(line)


def test_a_hundred_slow_heads_and_bodies_are_closed_and_the_next_is_served(hasty):
    lines = [hasty.connect() for _ in range(100)]
    try:
        for i, line in enumerate(lines):
            line.sendall(HEAD if i % 2 else HEAD + b"Content-Length: 50\r\n\r\n{")
        assert hasty.get("/health")[0] == 200
        assert all(is_closed(line) for line in lines)
    finally:
        for line in lines:
            line.close()
    assert hasty.wait_until(lambda: not hasty.server.server_state.connections)
    assert hasty.complete("a", max_tokens=2)["choices"]


def test_a_connection_too_many_is_closed_at_once(hasty):
    lines = [hasty.connect() for _ in range(170)]
    try:
        assert hasty.wait_until(lambda: len(hasty.server.server_state.connections) <= 150)
        assert all(is_closed(line) for line in lines)
    finally:
        for line in lines:
            line.close()


class Wire(asyncio.Transport):
    """A transport that remembers, and takes as much as the test wants."""

    def __init__(self):
        super().__init__()
        self.written, self.aborted, self.closed = b"", False, False

    def write(self, data):
        self.written += data

    def abort(self):
        self.aborted = True

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed or self.aborted

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def get_extra_info(self, name, default=None):
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)


def test_a_client_that_takes_nothing_is_closed_and_an_answer_may_last(hasty):
    """By the protocol itself: the kernel's buffers would hold more than a tiny model writes."""

    async def run():
        state = hasty.server.server_state
        line = Hasty(hasty.server.config, state, {}, asyncio.get_running_loop())
        wire = Wire()
        line.connection_made(wire)
        line.data_received(HEAD + b"Content-Length: 2\r\n\r\n{}")
        line.cycle.response_complete = False
        assert line.phase == "answer"
        assert line.timer is None
        line.pause_writing()
        assert line.phase == "write"
        line.resume_writing()
        assert line.timer is None
        line.pause_writing()
        await asyncio.sleep(0.7)
        assert wire.aborted
        line.connection_lost(None)

    asyncio.run(run())


def test_a_request_may_wait_for_its_go_ahead(hasty):
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
    with hasty.connect() as line:
        line.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        line.settimeout(10)
        assert line.recv(100).startswith(b"HTTP/1.1 100 ")
        line.sendall(body)
        assert line.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_in_a_row_on_one_connection_are_answered_in_order(hasty):
    with hasty.connect() as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line.settimeout(10)
        said = b""
        while b"Invalid URL" not in said:
            said += line.recv(65536)
        assert said.index(b"200 OK") < said.index(b"404 ")
