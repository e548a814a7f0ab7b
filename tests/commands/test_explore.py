"""The command `explore`: what is served and to whom, which run it takes, and the page as a folder without a server."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import random_model

from deepseek_v3.cli import main
from deepseek_v3.commands import explore
from deepseek_v3.commands.explore_save import join_modules
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

MODEL = Path(__file__).resolve().parents[2] / "explorer" / "model"
TEXT = "passage of some words, 1234"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with its tokenizer."""
    folder = tmp_path_factory.mktemp("explored") / "model"
    tokenizer = Tokenizer.train([TEXT], 277)
    save_model(random_model(vocab_size=tokenizer.vocab_size), folder, tokenizer)
    (folder / "notes.txt").write_text("not for the page")
    return folder


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A small page on the real model: its script leaves the last row of logits where the test finds it."""
    root = tmp_path / "page"
    shutil.copytree(MODEL, root / "model")
    (root / "index.html").write_text('<!doctype html><title>t</title>\n<script type="module" src="main.js"></script>\n')
    (root / "style.css").write_text("body { margin: 0 }\n")
    (root / "main.js").write_text(
        "import {loadModel as open} from './model/load.js'\nimport * as source from './model/source.js';\n"
        f"const model = await open(source.fetchFile)\nconst ids = model.tokenizer.encode({TEXT!r})\n"
        "globalThis.found = {ids, logits: Array.from(model.read(ids).logits.at(-1))}\n"
    )
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(explore, "explorer_files", lambda: files)
    return root


@pytest.fixture
def ask(folder, page):
    """Return a function that asks the running server for a path, and answers with status, headers and body."""
    server = explore.open_server(explore.pages_of(explore.explorer_files(), folder), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    port = server.server_address[1]

    def ask(path: str, *, method: str = "GET", host: str = "") -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_page_and_the_models_files_are_served_and_nothing_else(ask, folder):
    status, headers, body = ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")
    assert ask("/model/load.js?x=1")[1]["Content-Type"].startswith("text/javascript")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert ask(f"/weights/{name}")[2] == (folder / name).read_bytes()
    status, headers, body = ask("/weights/model.safetensors", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == (folder / "model.safetensors").stat().st_size
    for path in (
        "/weights/",
        "/weights/notes.txt",
        "/../pyproject.toml",
        "/weights/../../x",
        "/%2e%2e/x",
    ):
        assert ask(path)[0] == 404
    assert ask("/", method="POST")[0] == 501


def test_a_name_that_leads_here_from_elsewhere_is_refused(ask):
    assert ask("/weights/config.json", host="evil.example")[0] == 403
    assert ask("/weights/config.json", host="evil.example:8123")[0] == 403
    assert ask("/", host="localhost:8123")[0] == 200


def test_a_page_that_goes_on_while_the_checkpoint_is_replaced_is_told_so(page, tmp_path):
    gone = tmp_path / "gone.json"
    server = explore.open_server({"/gone.json": gone}, 0)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", "/gone.json")
    assert connection.getresponse().status == 404
    connection.close()
    thread.join()
    server.server_close()


def test_the_real_page_is_found_beside_the_package():
    files = explore.explorer_files()
    assert {"model/load.js", "model/source.js"} <= files.keys()
    assert not {"README.md", "package.json"} & files.keys()


def test_without_a_run_the_model_of_the_book_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "--save", "saved"]) == 0
    assert (tmp_path / "saved" / "index.html").is_file()
    assert explore.book_folder() == Path(__file__).resolve().parents[2] / "book_model"
    assert (
        ModelConfig.from_json(explore.book_folder() / "config.json").hidden_size
        == ModelConfig.preset("book").hidden_size
    )
    monkeypatch.setattr(explore, "__file__", str(tmp_path / "a" / "b" / "c" / "explore.py"))
    assert main(["explore"]) == 1
    assert "the book's model (book_model/) is not here; name a run" in capsys.readouterr().err


def test_what_no_page_can_show_is_said_in_one_line(folder, page, tmp_path, monkeypatch, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    assert main(["explore", str(bare)]) == 1
    assert "has no tokenizer.json" in capsys.readouterr().err
    monkeypatch.setattr(explore, "MOST_BYTES", 1000)
    assert main(["explore", str(folder)]) == 1
    assert "GB of weights, a page at most" in capsys.readouterr().err
    assert main(["explore", "model.gguf"]) == 1
    assert "`deepseek-v3 import` makes it a folder" in capsys.readouterr().err
    assert main(["explore", str(folder), "--port", "70000"]) == 1
    assert "--port 70000 must lie between" in capsys.readouterr().err


def run_script(folder: Path) -> dict:
    """Run a saved page's classic scripts in Node, as a browser would, and return what the page found."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    scripts = [
        str(folder / name) for name in re.findall(r'<script src="([^"]+)" defer>', (folder / "index.html").read_text())
    ]
    code = (
        "const vm = require('vm'), fs = require('fs'); for (const s of process.argv.slice(1)) "
        "vm.runInThisContext(fs.readFileSync(s, 'utf8'), s); const wait = () => globalThis.found "
        "? console.log(JSON.stringify(globalThis.found)) : setTimeout(wait, 5); wait()"
    )
    done = subprocess.run([node, "-e", code, *scripts], capture_output=True, timeout=60)
    assert not done.returncode, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


@torch.no_grad()
def test_a_saved_page_is_one_folder_without_modules_or_requests(folder, page, tmp_path, capsys):
    target = tmp_path / "saved"
    assert main(["explore", str(folder), "--save", str(target), "--to", "fp32"]) == 0
    assert sorted(p.name for p in target.iterdir()) == ["explorer.js", "index.html", "style.css", "weights.js"]
    assert "module" not in (target / "index.html").read_text()
    found = run_script(target)
    model, tokenizer = load_model(folder, tokenizer_from=Tokenizer.from_file)
    assert found["ids"] == tokenizer.encode(TEXT)
    assert np.abs(model(torch.tensor([found["ids"]]))[0, -1].numpy() - found["logits"]).max() < 1e-4
    assert main(["explore", str(folder), "--save", str(target)]) == 0  # its own folder may be written again, BF16 now
    assert 0 < np.abs(np.array(run_script(target)["logits"]) - found["logits"]).max() < 0.2
    assert main(["explore", str(folder), "--save", str(folder)]) == 1
    assert "holds something that is no saved page" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import('./model/load.js')", "no import or export that can be joined"),
        ("export default 3", "no import or export that can be joined"),
        ("export let x = 3", "no import or export that can be joined"),
        ("import './model/load.js'", "no import or export that can be joined"),
        ("console.log(import.meta.url)", "no import or export that can be joined"),
        ("import {x} from './nowhere.js'", "imports nowhere.js, which is not there"),
        ("import {x} from '../../x.js'", "lies outside of the page"),
        ("import {x} from './main.js'", "main.js imports itself"),
    ],
)
def test_what_cannot_be_joined_is_refused(line, said, tmp_path):
    (tmp_path / "main.js").write_text(f"const a = 1\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        join_modules({"main.js": tmp_path / "main.js"}, "main.js")
