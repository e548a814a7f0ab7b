"""The saved page in a real browser, opened as a file: no server, no module, no request, no complaint."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import random_model

from deepseek_v3.cli import main
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.save import save_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --enable-logging=stderr"

pytestmark = pytest.mark.slow


def test_a_saved_page_computes_when_it_is_opened_as_a_file(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium here")
    tokenizer = Tokenizer.train(["def main(): return 'some words'"], 290)
    save_model(random_model(vocab_size=tokenizer.vocab_size), tmp_path / "model", tokenizer)
    assert main(["explore", str(tmp_path / "model"), "--save", str(tmp_path / "page")]) == 0
    address = (tmp_path / "page" / "index.html").as_uri()
    words = [browser, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run([*words, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert re.search(r'<body[^>]* data-ready="true"', done.stdout), done.stdout[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
