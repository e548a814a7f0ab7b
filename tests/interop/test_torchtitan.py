"""Multi-token prediction as torchtitan computes it: the logits of every depth (`make test-interop` installs it).

torchtitan hands the state before the final norm to the first module, the serving engines and we the one after it. So it
is compared as it is where that norm is 1 (and eps next to nothing: a norm of a norm is then the same norm), and with
that one step moved where the norm is anything. Logits agree to 1e-5: float32 sums in another order, logits of up to 3.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import V2_LITE, V3, YARN, random_model

from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.save import save_model

HERE = Path(__file__).parent
PEER = HERE / ".torchtitan"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not (PEER / "torchtitan").exists(), reason="torchtitan is not installed here: make test-interop"
    ),
]
TOLERANCE = 1e-5
SIZES = {  # even widths: torchtitan turns its rope in complex numbers, and its grouped product wants rows of 16 bytes
    "hidden_size": 44,
    "moe_intermediate_size": 28,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 4,
    "initializer_range": 0.1,
}
MODELS = {
    "groups, one depth": {**V3, **SIZES},
    "groups, two depths": {**V3, **SIZES, "num_nextn_predict_layers": 2},
    "YaRN, no query latent, two depths": {
        **V3,
        **SIZES,
        "q_lora_rank": None,
        "rope_scaling": YARN,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 2,
    },
    "softmax, two shared experts": {**V2_LITE, **SIZES, "q_lora_rank": None, "num_nextn_predict_layers": 1},
}
TOKENS = [5, 7, 11, 100, 3, 42, 17, 55, 56, 31, 2, 99, 80, 81, 82, 83, 84, 9, 8, 77, 130, 0, 1]


def ask_torchtitan(model: DeepseekV3, folder: Path, *flags: str) -> list[torch.Tensor]:
    """Return torchtitan's logits of the main head and of every depth, in its own process."""
    save_model(model, folder, None)
    command = [sys.executable, str(HERE / "torchtitan_logits.py"), *flags, str(folder), json.dumps(TOKENS)]
    environment = {**os.environ, "PYTHONPATH": str(PEER)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.tensor(rows) for rows in json.loads(run.stdout.splitlines()[-1])]


def differences(model: DeepseekV3, theirs: list[torch.Tensor]) -> list[float]:
    """Return the largest difference of the main head and of every depth, over the rows whose input token exists."""
    with torch.no_grad():
        main, ahead = model(torch.tensor([TOKENS]), mtp=True)
    assert len(theirs) == 1 + len(ahead)
    rows = [len(TOKENS) - k for k in range(len(theirs))]
    return [float((a[0, :n] - b[:n]).abs().max()) for a, b, n in zip([main, *ahead], theirs, rows)]


def unit_norm_model(name: str) -> DeepseekV3:
    """A random model whose final norm has the weight 1, and whose eps is too small to see."""
    model = random_model(MODELS[name], rms_norm_eps=1e-12)
    with torch.no_grad():
        model.norm.weight.fill_(1)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_torchtitan_as_it_is_has_our_logits_where_the_final_norm_is_one(name, tmp_path):
    model = unit_norm_model(name)
    assert max(differences(model, ask_torchtitan(model, tmp_path / "ours"))) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_torchtitan_given_the_normed_state_has_our_logits_whatever_the_final_norm(name, tmp_path):
    model = random_model(MODELS[name])
    assert max(differences(model, ask_torchtitan(model, tmp_path / "ours", "--normed"))) <= TOLERANCE


def test_the_state_before_the_final_norm_gives_other_logits(tmp_path):
    model = random_model(MODELS["groups, two depths"])
    main, *ahead = differences(model, ask_torchtitan(model, tmp_path / "ours"))
    assert main <= TOLERANCE
    assert min(ahead) > 0.1


def test_the_hidden_state_first_gives_other_logits(tmp_path):
    """Control: the order of the paper's Eq. (21), in which the released weights are not stored."""
    model = unit_norm_model("groups, two depths")
    theirs = ask_torchtitan(model, tmp_path / "ours")
    with torch.no_grad():
        for module in model.mtp:
            module.eh_proj.weight.copy_(module.eh_proj.weight.roll(MODELS["groups, two depths"]["hidden_size"], 1))
    main, *ahead = differences(model, theirs)
    assert main <= TOLERANCE
    assert min(ahead) > 0.1
