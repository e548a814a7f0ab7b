"""The same weights, the same words: mlx-lm and llama.cpp continue as we do (`make test-interop` installs them).

Both run in their own process. Log-probabilities agree to 1e-4: float32 sums in another order, over logits of about 10.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import V2_LITE, V3, YARN, random_model

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.gguf import export_gguf
from deepseek_v3.weights.save import save_model

pytestmark = pytest.mark.interop
HERE = Path(__file__).parent
TOLERANCE = 1e-4
SIZES = {  # even and block-friendly: llama.cpp's kernels want multiples of 32
    "vocab_size": 389,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 640,
}
LITE = {"q_lora_rank": None, "num_hidden_layers": 27}  # the count by which llama.cpp knows a plain q_proj
MODELS = {
    "groups": {**V3, **SIZES, "q_lora_rank": 32, "hidden_size": 96},
    "YaRN": {**V3, **SIZES, "q_lora_rank": 32, "rope_scaling": YARN, "n_shared_experts": 2},
    "no query latent": {**V3, **SIZES, **LITE, "n_group": 1, "topk_group": 1},
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A random model saved in FP32, a prompt with our greedy continuation, and our log-probabilities."""
    folder = tmp_path_factory.mktemp("peers")
    model = random_model(MODELS[request.param])
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.abs_()  # mlx-lm masks groups with 0 instead of -inf, which negative scores would show
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 9], 300)
    save_model(model, folder / "ours", tokenizer)
    tokens = [5, 7, 11, 100, 3, 42, 17, 255, 256, 31, 2, 199, 80, 81, 82, 83, 84, 9, 8, 77]
    with torch.no_grad():
        for _ in range(8):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        expected = model(torch.tensor([tokens]))[0].log_softmax(-1)
    return folder, tokens, expected


def ask(command: list[str], tokens: list[int], **environment: str) -> torch.Tensor:
    """Run a peer; it prints its log-probabilities as JSON."""
    import os

    command = [*command, json.dumps(tokens)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.tensor(json.loads(run.stdout.strip().splitlines()[-1]))


def agree(found: torch.Tensor, expected: torch.Tensor, tokens: list[int]) -> None:
    assert (found - expected).abs().max() <= TOLERANCE
    assert found[-9:-1].argmax(-1).tolist() == tokens[-8:], "the greedy continuation differs"


def test_llama_cpp_continues_as_we_do(saved):
    folder, tokens, expected = saved
    if not (shutil.which("node") and (HERE / "node_modules" / "node-llama-cpp").exists()):
        pytest.skip("llama.cpp is not installed here: make test-interop")
    export_gguf(folder / "ours", folder / "model.gguf", number_type="f32")
    found = ask(["node", str(HERE / "llama_logprobs.mjs"), str(folder / "model.gguf")], tokens)
    agree(found, expected, tokens)


def test_mlx_lm_continues_as_we_do(saved):
    folder, tokens, expected = saved
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed here: make test-interop")
    found = ask([sys.executable, str(HERE / "mlx_logprobs.py"), str(folder / "ours")], tokens)
    agree(found, expected, tokens)


def test_llama_cpp_reads_the_v2_router_too(tmp_path):
    """Softmax scores, no bias, weights not normalised, two shared experts."""
    if not (shutil.which("node") and (HERE / "node_modules" / "node-llama-cpp").exists()):
        pytest.skip("llama.cpp is not installed here: make test-interop")
    model = random_model({**V2_LITE, **SIZES, **LITE})
    save_model(model, tmp_path / "ours", Tokenizer.train(["a b c d " * 9], 300))
    export_gguf(tmp_path / "ours", tmp_path / "model.gguf", number_type="f32")
    tokens = [5, 7, 11, 100, 3, 42]
    found = ask(["node", str(HERE / "llama_logprobs.mjs"), str(tmp_path / "model.gguf")], tokens)
    with torch.no_grad():
        assert (found - model(torch.tensor([tokens]))[0].log_softmax(-1)).abs().max() <= TOLERANCE


def test_the_engine_is_timed_against_llama_cpp_in_three_formats(tmp_path, capsys):
    """Its 8 bits are llama.cpp's own, of every matrix but the routers."""
    import gguf

    from benchmarks import llama

    if not (llama.QUANTIZER.exists() and llama.LIBRARIES.exists()):
        pytest.skip("llama.cpp's programs are not built here: make test-interop")
    kinds = {}
    for _, _, path in llama.in_every_format(tmp_path):
        tensors = gguf.GGUFReader(path).tensors
        kinds[path.stem] = {t.tensor_type.name for t in tensors if len(t.shape) > 1 and "ffn_gate_inp" not in t.name}
    assert kinds == {"f32": {"F32"}, "bf16": {"BF16"}, "q8_0": {"Q8_0"}}
    llama.print_against_llama(1, (1,), 3)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(",")[0].strip() for row in rows] == ["f32", "bf16", "8 bits"]
