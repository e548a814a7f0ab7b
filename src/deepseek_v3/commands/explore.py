"""The command `deepseek-v3 explore`: a page that computes a trained model in the browser, and shows every part of it.

    deepseek-v3 explore                            the model of the book, trained by `make book`
    deepseek-v3 explore runs/demo                  http://127.0.0.1:8123, for this machine alone
    deepseek-v3 explore runs/demo --save FOLDER    a folder for any web server, and for opening index.html as a file

The page is plain JavaScript (explorer/) and reads an ordinary checkpoint folder. This file imports no PyTorch.
"""

import webbrowser
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from typing import Literal
from urllib.parse import unquote, urlsplit

import tyro

MOST_BYTES = 2**31  # of weights: a page holds them as FP32, and has some 4 GB
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
HERE = ("127.0.0.1", "localhost")
ABSENT = "the page's files (explorer/) are not here; install the package again"
NOT_SERVED = ("README.md", "package.json")


@dataclass(frozen=True)
class ExploreOptions:
    """Look into a trained model in the browser: every number of it, on your own text.

    Attributes:
        run: a run folder (its newest checkpoint), or a Hugging Face directory; without, the book's model.
        save: write the page with the model into this folder, and serve nothing.
        to: of --save, the format of the weights; keep leaves each tensor as it is.
        port: port on 127.0.0.1; 0 takes a free one.
        browser: open the page.
    """

    run: tyro.conf.Positional[str] = ""
    save: str = ""
    to: Literal["bf16", "fp32", "fp8", "keep"] = "bf16"
    port: int = 8123
    browser: bool = True


def run_explore(options: ExploreOptions) -> None:
    """Serve the page until interrupted, or save it.

    Raises:
        ValueError: no run to show, or one that a page cannot hold.
    """
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port {options.port} must lie between 0 and 65535")
    page = explorer_files()
    if "index.html" not in page:
        raise ValueError(ABSENT)
    folder = model_folder(options.run or str(book_folder()))
    if options.save:
        from deepseek_v3.commands.explore_save import save_page

        save_page(page, folder, options.save, to=options.to)
        print(f"wrote {options.save}: open {Path(options.save) / 'index.html'}, or put the folder on any web server")
        return
    with open_server(pages_of(page, folder), options.port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"{folder}\n{address} (Ctrl-C stops)", flush=True)
        if options.browser:
            webbrowser.open(address)
        server.serve_forever()


def book_folder() -> Path:
    """Return the folder of the book's trained model: in the package, or in the repository around it.

    Raises:
        ValueError: it was not installed.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "book_model", package.parent.parent / "book_model"):
        if (root / "config.json").is_file():
            return root
    raise ValueError("the book's model (book_model/) is not here; name a run, such as one of `deepseek-v3 demo`")


def model_folder(source: str) -> Path:
    """Return the folder with the model's files: of a run its newest checkpoint.

    Raises:
        ValueError: a file is missing, or there are more weights than a page can hold.
        OSError: no such folder.
    """
    from deepseek_v3.commands.rewriting import newest_of_run
    from deepseek_v3.config import ModelConfig

    if source.endswith(".gguf"):
        raise ValueError(f"{source} is a file of others; `deepseek-v3 import` makes it a folder of ours first")
    folder = Path(newest_of_run(source))
    ModelConfig.from_json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, so text cannot become tokens; copy it there")
    weights = list(folder.glob("model*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no model.safetensors")
    n_bytes = sum(path.stat().st_size for path in weights)
    if n_bytes > MOST_BYTES:
        raise ValueError(f"{folder} holds {n_bytes / 1e9:.1f} GB of weights, a page at most {MOST_BYTES / 1e9:.1f} GB")
    return folder


def explorer_files() -> dict[str, Path]:
    """Return the files of the page, by their path in it: from the package, or from the repository around it.

    Raises:
        ValueError: they were not installed.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "explorer", package.parent.parent / "explorer"):
        if (root / "model" / "load.js").is_file():
            files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
            return {name: path for name, path in files.items() if name not in NOT_SERVED}
    raise ValueError(ABSENT)


def pages_of(page: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Return everything that is served, by path: the page, and below weights/ the model's files, nothing else."""
    pages = {f"/{name}": path for name, path in page.items()}
    model = [folder / "config.json", folder / "tokenizer.json", *folder.glob("model*.safetensors*")]
    return {**pages, "/": pages["/index.html"], **{f"/weights/{path.name}": path for path in model}}


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for a table of files, to whoever asks this machine by its own name."""

    def __init__(self, pages: dict[str, Path], *rest) -> None:
        self.pages = pages
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Say what would be sent."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        path = self.pages.get(unquote(urlsplit(self.path).path))
        if host not in HERE:  # a page of others whose name leads here
            self.send_error(403)
            return
        if path is None or not path.is_file():  # a training that goes on may have replaced its checkpoint
            self.send_error(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Type", KINDS.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                copyfileobj(file, self.wfile, 2**20)

    def log_message(self, format: str, *args) -> None:
        """Say nothing: the terminal is the user's."""


def open_server(pages: dict[str, Path], port: int) -> ThreadingHTTPServer:
    """Listen on loopback.

    Raises:
        ValueError: a port that is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(PageHandler, pages))
    except OSError as error:
        raise ValueError(f"--port {port}: {(error.strerror or str(error)).lower()}; name another, or 0") from None
