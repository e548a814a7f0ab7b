"""Codes travel to the experts and BF16 comes back, and every number is that of one process."""

import json
from pathlib import Path

import expert_parallelism
import pytest

from deepseek_v3.cli import main

HERE = Path(__file__).resolve().parent
WIDTH = 160


def test_a_layer_in_fp8_gives_the_bits_of_one_process_and_sends_a_byte_a_number(torchrun):
    said = torchrun(2, str(HERE / "fp8_layer.py"))
    assert "UNEQUAL" not in said
    sent = [tuple(map(int, line.split()[1:])) for line in said.splitlines() if line.startswith("SENT")]
    assert len(sent) == 4
    out, back = expert_parallelism.fp8_token_bytes(WIDTH), expert_parallelism.bf16_token_bytes(WIDTH)
    assert (out, back) == (160 + 4 * 2, 2 * 160)
    for n_bytes, crossing, arriving in sent:
        # forward and backward; backward a weight goes out with the codes, and its gradient comes back
        assert n_bytes == crossing * (out + out + 4) + arriving * (back + back + 4)
    assert sum(crossing for _, crossing, _ in sent) > 300


@pytest.mark.slow
def test_a_training_in_fp8_with_shared_experts_goes_as_that_of_one_process(torchrun, words, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    in_fp8 = [*words, "--precision", "fp8", "--steps", "3"]
    assert main(["train", "--run", str(alone), "--sample-prompts", "x", *in_fp8]) == 0
    torchrun(2, "train", "--run", str(two), "--ep", "2", *in_fp8)
    rows = [map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) for run in (alone, two)]
    losses = [[row["loss"] for row in side if row["kind"] == "step"] for side in rows]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # other rows share a tile in the other products
