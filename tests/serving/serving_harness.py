"""A tiny model behind a real server on this machine, in a thread of the test's process."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepseek_v3.commands.serve import ServeOptions, build_app, listen, make_server


class Running:
    """A server that runs, and what a client does with it."""

    def __init__(self, host: str, port: int, worker: Any, guard: Any) -> None:
        self.host, self.port, self.worker, self.guard = host, port, worker, guard
        self.headers = {"content-type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and content: of JSON the object, else text."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**self.headers, **headers})
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        kind = answer.headers.get("content-type", "")
        content = json.loads(raw) if raw and kind.startswith("application/json") else raw.decode()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, content

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, content = self.ask("GET", path, **headers)
        return status, content

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, content = self.ask("POST", path, body, **headers)
        return status, content

    def complete(self, prompt: Any = "the quick", **more: Any) -> dict[str, Any]:
        """A completion that must succeed."""
        status, content = self.post("/v1/completions", {"model": "tiny", "prompt": prompt, **more})
        assert status == 200, content
        return content

    def chat(self, words: str = "hello", **more: Any) -> dict[str, Any]:
        """An answer that must succeed."""
        messages = more.pop("messages", [{"role": "user", "content": words}])
        status, content = self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, **more})
        assert status == 200, content
        return content

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, which ends with exactly one [DONE]."""
        status, headers, content = self.ask("POST", path, {"model": "tiny", "stream": True, **body})
        assert status == 200, content
        assert headers["content-type"].startswith("text/event-stream")
        assert content.endswith("\n\n")
        lines = content[:-2].split("\n\n")
        assert all(line.startswith("data: ") for line in lines)
        assert [line for line in lines if line == "data: [DONE]"] == lines[-1:]
        return [json.loads(line[6:]) for line in lines[:-1]]

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection((self.host, self.port), timeout=30)

    def wait_until(self, condition: Any, seconds: float = 30) -> bool:
        """Look again and again whether something has come true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def blocks_held(self) -> int:
        status, state = self.get("/live")
        assert status == 200
        return state["blocks"] - state["blocks_free"]


@contextmanager
def run_server(model: Any, tokenizer: Any, *, connection: Any = None, **settings: Any) -> Iterator[Running]:
    """Run a server until the block is left; then nothing of it is left either."""
    options = ServeOptions(run="tiny", **{"name": "tiny", "port": 0, "drain_seconds": 5, **settings})
    app, _ = build_app(model, tokenizer, options, list(options.api_key))
    door = listen("127.0.0.1", 0)
    server = make_server(app, options, connection)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    running = Running("127.0.0.1", door.getsockname()[1], app.worker, app)
    running.server, running.thread = server, thread
    assert running.wait_until(lambda: server.started)
    try:
        yield running
    finally:
        server.should_exit = True
        thread.join(30)
        door.close()
        assert not thread.is_alive()
        assert not app.worker.thread.is_alive()
