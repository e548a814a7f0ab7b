"""llama.cpp reads our MTP layer and both forms of kv_b: the same log-probabilities, the same tokens with its drafts.

`make test-interop` installs llama.cpp as an npm package; its server, for the drafts, is built by build_llama_server.sh.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
sys.path.insert(0, str(Path(__file__).parent))
from test_gguf import rewrite_as_before_april_2025
from test_peers import SIZES, TOLERANCE, ask
from tiny_checkpoints import V3, random_model

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.generate import generate
from deepseek_v3.weights.gguf import export_gguf
from deepseek_v3.weights.save import save_model

pytestmark = pytest.mark.interop
HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepseek-v3"
SERVER = CACHE / "llama" / "llama.cpp" / "build" / "bin" / "llama-server"
WITH_MTP = {**V3, **SIZES, "q_lora_rank": 32, "num_nextn_predict_layers": 1}
PROMPT = [5, 7, 11, 100, 3, 42, 17]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtp")
    model = random_model(WITH_MTP)
    save_model(model, folder / "ours", Tokenizer.train(["the quick brown fox jumps " * 9], 300))
    export_gguf(folder / "ours", folder / "model.gguf", number_type="f32")
    return folder, model


@pytest.mark.parametrize("form", ["with the MTP layer", "as before April 2025"])
def test_llama_cpp_says_the_same(exported, form):
    if not (HERE / "node_modules" / "node-llama-cpp").exists():
        pytest.skip("llama.cpp is not installed here: make test-interop")
    folder, model = exported
    path = folder / "model.gguf"
    if form == "as before April 2025":
        export_gguf(folder / "ours", folder / "main.gguf", number_type="f32", mtp=False)
        path = folder / "old.gguf"
        rewrite_as_before_april_2025(
            folder / "main.gguf", path, folder / "ours", key_length=32 + 16, value_length=32, head_count_kv=3
        )
    found = ask(["node", str(HERE / "llama_logprobs.mjs"), str(path)], PROMPT)
    with torch.no_grad():
        assert (found - model(torch.tensor([PROMPT]))[0].log_softmax(-1)).abs().max() <= TOLERANCE


def test_llama_cpp_drafts_with_our_mtp_layer_and_writes_our_tokens(exported):
    if not SERVER.exists():
        pytest.skip("llama.cpp's server is not built here: tests/interop/build_llama_server.sh")
    folder, model = exported
    wanted = list(generate(model, PROMPT, max_new_tokens=24, stop_tokens=[]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (
        f"-m {folder / 'model.gguf'} --port {port} -c 256 -t 1 -np 1 -ctk f32 -ctv f32 -fa off --spec-type draft-mtp"
    )
    server = subprocess.Popen([str(SERVER), *words.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asked = {"prompt": PROMPT, "n_predict": 24, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        said = post(f"http://127.0.0.1:{port}/completion", asked, give_up=time.monotonic() + 120)
    finally:
        server.terminate()
        server.wait()
    assert said["tokens"] == wanted
    assert said["timings"]["draft_n"] > 0


def post(url: str, content: dict, give_up: float) -> dict:
    """Ask until the server is there."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
