"""llama.cpp reads our MTP layer and both forms of kv_b: the same log-probabilities, the same tokens with its drafts.

`make test-interop` installs llama.cpp as an npm package; its library, for the drafts, is built by build_llama.sh.
"""

import json
import os
import subprocess
import sys
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
PROGRAM = CACHE / "llama" / "llama_mtp"
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


def test_llama_cpp_writes_our_tokens_and_its_mtp_block_drafts_as_our_module_does(exported):
    """At every position: the main model's likeliest token, and the block's draft from its hidden state."""
    if not PROGRAM.exists():
        pytest.skip("llama.cpp's library is not built here: make test-interop")
    folder, model = exported
    tokens = [*PROMPT, *generate(model, PROMPT, max_new_tokens=24, stop_tokens=[])]
    words = [str(PROGRAM), str(folder / "model.gguf"), *map(str, tokens)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = {name: torch.tensor(rows) for name, rows in json.loads(run.stdout).items()}
    with torch.no_grad():
        main_BSV, module_BSV = model(torch.tensor([tokens]), mtp=True)
    ours = {"main": main_BSV[0], "mtp": module_BSV[0][0][: len(tokens) - 1]}
    for name, logits_SV in found.items():
        assert (logits_SV.log_softmax(-1) - ours[name].log_softmax(-1)).abs().max() <= TOLERANCE
        assert torch.equal(logits_SV.argmax(-1), ours[name].argmax(-1))
    assert found["main"][len(PROMPT) - 1 : -1].argmax(-1).tolist() == tokens[len(PROMPT) :]
