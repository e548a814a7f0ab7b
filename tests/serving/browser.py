"""A real Chromium without a window, spoken to through two pipes: open a page, run JavaScript in it, take a picture.

    deepseek-v3 serve runs/demo & python tests/serving/browser.py http://127.0.0.1:8000 docs/serving.png

takes the picture of the README, while a text is written.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def answering(server: Any) -> Iterator[str]:
    """Let an HTTP server answer in a thread; yields its address."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Browser:
    """One page. `seen` is what the browser told meanwhile: requests, errors, the console."""

    def __init__(self, width: int = 1280, height: int = 860, *, dark: bool = False, scale: float = 1) -> None:
        assert CHROMIUM is not None
        theirs, self.to = os.pipe()
        self.back, ours = os.pipe()
        self.folder = tempfile.mkdtemp()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self.process = subprocess.Popen(
            [*command, "--disable-background-networking", f"--user-data-dir={self.folder}", "about:blank"],
            preexec_fn=lambda: (os.dup2(theirs, 103), os.dup2(ours, 104), os.dup2(103, 3), os.dup2(104, 4)),
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self.number, self.held, self.seen, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{room}.enable")
        self.resize(width, height, dark=dark, scale=scale)

    def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Be another screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser and wait for its answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            while b"\0" not in self.held:
                assert select.select([self.back], [], [], 60)[0], f"the browser does not answer {method}"
                self.held += os.read(self.back, 2**20)
            raw, _, self.held = self.held.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.seen.append(answer)
        raise TimeoutError(method)

    def run(self, script: str) -> Any:
        """Run JavaScript in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 40) -> None:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"{condition} never came true"
            time.sleep(0.05)

    def picture(self, path: str | Path) -> None:
        """Write what is seen as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def picture_writing(url: str, path: str) -> None:
    """Let two texts be written, and take the picture in the middle of the second."""
    with Browser(1280, 800) as page:
        page.call("Page.navigate", url=f"{url}/#mode=prompt")
        page.wait("typeof model !== 'undefined' && model")
        page.run("$('most').value = 400; $('drafts').value = 2")
        for words, count in (("import os\n\ndef ", 400), ("class Parser:\n    ", 150)):
            page.run(f"$('words').value = {json.dumps(words)}; $('form').requestSubmit()")
            page.wait(f"document.querySelectorAll('#text span > span').length > {count} || !control")
            page.wait("!control" if count == 400 else "true")
        time.sleep(0.5)  # the state beside it is asked for four times a second
        page.picture(path)


if __name__ == "__main__":
    picture_writing(*sys.argv[1:])
