"""What the tests of the explorer share: one Node process a file, that runs a module of this folder; a real Chromium."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serving"))
from browser import CHROMIUM, Browser, answering

HERE = Path(__file__).resolve().parent
READY = "document.body && document.body.dataset.ready === 'true'"
IN_PAGE = (HERE / "in_page.js").read_text(encoding="utf-8")
SETTLE = "settle()"


@pytest.fixture(scope="session")
def run_node():
    """Return a function: run a .mjs of this folder on a job, a JSON object, and return the JSON that it prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")

    def run(script: str, job: object = None) -> dict:
        words = [node, str(HERE / script)]
        done = subprocess.run(words, input=json.dumps(job).encode(), capture_output=True, timeout=300)
        assert not done.returncode, done.stderr.decode()[-2000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def unpack():
    """Return a function: an array of what a script packed."""
    return lambda packed: np.frombuffer(base64.b64decode(packed["data"]), packed["type"]).reshape(packed["shape"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the demo's shape, as drawn, with a tokenizer of its size."""
    import torch

    from deepseek_v3.config import ModelConfig
    from deepseek_v3.data.tokenizer import Tokenizer
    from deepseek_v3.model.transformer import DeepseekV3
    from deepseek_v3.weights.save import save_model

    library = Path(json.__file__).parent.parent
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-d]*.py"))]
    tokenizer = Tokenizer.train([*texts, "für 深度 🙂 x"], 2048)
    torch.manual_seed(7)
    model = DeepseekV3(ModelConfig.preset("demo").replace(vocab_size=tokenizer.vocab_size)).eval()
    out = tmp_path_factory.mktemp("model") / "demo"
    save_model(model, out, tokenizer)
    return out


@pytest.fixture(scope="module")
def address(folder):
    from deepseek_v3.commands.explore import explorer_files, open_server, pages_of

    with answering(open_server(pages_of(explorer_files(), folder), 0)) as at:
        yield at


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with Browser(1400, 900) as one:
        yield one


@pytest.fixture
def page(browser, address):
    """A function that opens the page at a state; at the end no error was told and nobody else was asked."""
    browser.seen.clear()

    def open_at(view="flow", text="", **more):
        state = {"view": view, "text": text, **more}
        said = "&".join(f"{key}={quote(str(value))}" for key, value in state.items() if value != "")
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=f"{address}#{said}")
        browser.wait(READY)
        browser.run(IN_PAGE)
        browser.run(SETTLE)
        return browser

    yield open_at
    browser.run(SETTLE)
    for told in browser.seen:
        trouble = told["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert not trouble, json.dumps(told["params"])[:1500]
        url = told.get("params", {}).get("request", {}).get("url", "")
        assert not url or url.startswith((address, "data:")), url
