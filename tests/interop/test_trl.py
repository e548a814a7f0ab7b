"""Fine-tuning and the five losses against TRL on a tiny DeepseekV3ForCausalLM (`make test-interop` installs it).

Both sides compute in FP64; 1e-6 relative leaves room for what transformers keeps in FP32 (rotations, the router).
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.post_training import losses
from deepseek_v3.post_training.dialogues import Dialogue
from deepseek_v3.post_training.losses import Answers
from deepseek_v3.post_training.policy import AnswerBatch, score_written
from deepseek_v3.post_training.sft import FineTuning, answer_labels, stack_rows
from deepseek_v3.training.loss import IGNORED
from deepseek_v3.training.schedule import Settings
from deepseek_v3.weights.save import save_model

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import V3, random_model

HERE = Path(__file__).parent
PEER = HERE / ".trl"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not (PEER / "trl").exists(), reason="TRL is not installed here: make test-interop"),
]
B, PROMPT, ANSWER, PAD = 6, 4, 5, 2
SHARED = {"bias_correction": True, "beta": 0.2, "max_length": 9, "low": 0.2, "high": 0.2, "level": "token"}
SETTINGS = {
    "grpo": {**SHARED, "loss_type": "grpo"},
    "dr_grpo": {**SHARED, "loss_type": "dr_grpo"},
    "dapo": {**SHARED, "loss_type": "dapo", "high": 0.28},
    "gspo": {**SHARED, "loss_type": "grpo", "level": "sequence", "low": 0.05, "high": 0.07, "beta": 0.0},
    "cispo": {**SHARED, "loss_type": "cispo", "high": 1.28},
}
OURS = {
    "grpo": partial(losses.grpo_loss, beta=0.2),
    "dr_grpo": partial(losses.dr_grpo_loss, max_length=9, beta=0.2),
    "dapo": partial(losses.dapo_loss, beta=0.2),
    "gspo": partial(losses.gspo_loss, low=0.05, high=0.07),
    "cispo": partial(losses.cispo_loss, beta=0.2),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our model, the answers, the dialogues, and what TRL makes of them."""
    folder = tmp_path_factory.mktemp("trl")
    model = random_model(**{**V3, "num_nextn_predict_layers": 0}).double()
    save_model(model, folder / "model", dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    token = torch.randint(3, 131, (B, PROMPT + ANSWER), generator=generator)
    mask = torch.arange(ANSWER) < torch.tensor([1, 3, 5, 5, 2, 4])[:, None]
    token[:, PROMPT:][~mask] = PAD
    written = torch.cat((torch.zeros(B, PROMPT - 1, dtype=torch.bool), mask), 1)
    batch = AnswerBatch(token, written, torch.zeros(written.shape), torch.zeros(B))
    with torch.no_grad():
        own, _ = score_written(model, batch, RoutingRecord(), 1.0)
    old = (own + 0.6 * (draw(*own.shape) - 0.5)) * written
    reference = (own + 0.6 * (draw(*own.shape) - 0.5)) * written
    advantage = draw(B) * 2 - 1
    dialogues = [
        Dialogue(torch.randint(3, 131, (n,), generator=generator).tolist(), [i >= 2 for i in range(n)])
        for n in (5, 9, 7)
    ]
    case = {
        "prompt_ids": token[:, :PROMPT].tolist(), "prompt_mask": [[1] * PROMPT] * B,
        "completion_ids": token[:, PROMPT:].tolist(), "completion_mask": mask.long().tolist(),
        "advantages": advantage.tolist(), "old_per_token_logps": old[:, PROMPT - 1 :].tolist(),
        "ref_per_token_logps": reference[:, PROMPT - 1 :].tolist(), "settings": SETTINGS, "pad": PAD,
        "dialogues": [d._asdict() for d in dialogues],
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    words = [
        sys.executable,
        str(HERE / "trl_losses.py"),
        *(str(folder / n) for n in ("model", "case.json", "found.json")),
    ]
    env = {**os.environ, "PYTHONPATH": str(PEER), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    answers = Answers(written, advantage, old, reference)
    return model, batch, answers, dialogues, json.loads((folder / "found.json").read_text())


def norm_of(model) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


@pytest.mark.parametrize("name", OURS)
def test_a_loss_and_its_gradient_are_trls(both, name):
    model, batch, answers, _, found = both
    model.zero_grad()
    logp, _ = score_written(model, batch, RoutingRecord(), 1.0)
    loss = OURS[name](logp, answers)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(found[name][0], rel=1e-6, abs=1e-8)
    assert norm_of(model) == pytest.approx(found[name][1], rel=1e-6)


def test_fine_tuning_and_its_gradient_are_trls(both):
    model, _, _, dialogues, found = both
    rows = stack_rows([[d] for d in dialogues], PAD)
    model.zero_grad()
    count = int((answer_labels(rows) != IGNORED).sum())
    parts = FineTuning()(model, rows, RoutingRecord(), Settings(1e-3, 3, 0.0, 0.0, count))
    parts.total.backward()
    assert float(parts.total.detach()) == pytest.approx(found["sft"][0], rel=1e-6)
    assert norm_of(model) == pytest.approx(found["sft"][1], rel=1e-6)
