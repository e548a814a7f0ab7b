"""A pipeline of layers, with MTP modules and shared experts in it, makes the step of one process."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_v3.cli import main
from deepseek_v3.parallel.timetable import list_actions

HERE = Path(__file__).resolve().parent
DEEPER = ["--set", "num_hidden_layers=5", "hidden_size=40", "vocab_size=331", "n_routed_experts=8"]
DEEPER += ["moe_intermediate_size=24", "num_nextn_predict_layers=1", "n_group=2", "topk_group=1"]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory) -> Path:
    """Of one step of one process."""
    out = tmp_path_factory.mktemp("alone")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(HERE / "one_step.py"), str(out)], check=True, env=environment)
    return out


def facts(out: Path) -> dict[int, dict]:
    return {int(file.stem[6:]): json.loads(file.read_text()) for file in out.glob("facts-*.json")}


RUNS = [(2, 1, 1), pytest.param(4, 2, 0, marks=pytest.mark.slow), pytest.param(4, 2, 1, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("processes", "ep", "recompute"), RUNS)
def test_gradients_counts_and_forward_passes_are_those_of_one_process(torchrun, gradients, tmp_path, processes, ep,
                                                                      recompute):  # fmt: skip
    torchrun(processes, str(HERE / "one_step.py"), str(tmp_path), "pp=2", f"ep={ep}", f"recompute={recompute}")
    known, mine = load_file(gradients / "grads-0.safetensors"), {}
    for file in tmp_path.glob("grads-*.safetensors"):
        held = load_file(file)
        assert not mine.keys() & held.keys()  # no layer lives twice, and embedding and head are one
        mine |= held
    assert mine.keys() == known.keys()
    for name in ("embed_tokens.weight", "lm_head.weight", *sorted(known)):
        scale = known[name].abs().max()
        torch.testing.assert_close(mine[name] / scale, known[name] / scale, rtol=0, atol=2e-6)
    order = list_actions("DualPipeV", 2, 16 // processes)
    for rank, told in facts(tmp_path).items():
        planned = Counter(action.kind for actions in order[rank * 2 // processes] for action in actions)
        assert {kind: len(grew) for kind, grew in told["grew"].items()} == planned - Counter(F=planned["F"])
        assert planned["W"] == planned["I"] > 0
        assert not any(told["grew"]["I"])  # a pass for inputs leaves the weights' part to its W
        assert all(told["grew"]["W"] + told["grew"]["B"])
        assert told["total"] == pytest.approx(facts(gradients)[0]["total"], rel=1e-6)
        assert told["counts"] == facts(gradients)[0]["counts"]
        sent = [sum(count) for count in told["counts"].values()]  # rows x tokens x top-k; no last token for the module
        assert sent == [8 * 33 * 4] * 5 + [8 * 32 * 4]
        assert set(told["runs"].values()) == {8 * 2 // processes * (1 + recompute)}  # once a micro-batch, or twice


@pytest.fixture(scope="module")
def deeper(words) -> list[str]:
    """The options of every run here: a model of five layers, micro-batches of a row."""
    kept = words[: words.index("--set")] + words[words.index("--data") :]
    return [*kept, *DEEPER, "--micro-batch", "1"]


@pytest.mark.parametrize(("processes", "ep"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_pipeline_trains_and_saves_what_one_process_does(torchrun, deeper, tmp_path, processes, ep):
    alone, piped = tmp_path / "alone", tmp_path / "piped"
    assert main(["train", "--run", str(alone), "--steps", "5", "--sample-prompts", "x", *deeper]) == 0
    torchrun(processes, "train", "--run", str(piped), "--pp", "2", "--ep", str(ep), "--steps", "5", *deeper)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (piped, alone)]
    (mine, known) = ([row for row in side if row["kind"] == "step"] for side in rows)
    assert len(mine) == len(known) == 5
    for i, (a, b) in enumerate(zip(mine, known)):
        for name in ("loss", "mtp_loss", "balance_loss", "bits_per_byte"):
            assert a[name] == pytest.approx(b[name], rel=1e-5 if i else 1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-5 if i else 1e-6)
        assert a["tokens"] == b["tokens"]
    assert mine[0]["loads"] == known[0]["loads"]
    (measured, told) = ([row["bits_per_byte"] for row in side if row["kind"] == "heldout"] for side in rows)
    assert measured == pytest.approx(told, rel=1e-5)
    assert main(["inspect", str(piped)]) == 0
    # and one process goes on from what the pipeline wrote at step 3
    shutil.rmtree(piped / "checkpoints" / "step-00000005")
    assert main(["train", "--run", str(piped), "--resume", "--steps", "5"]) == 0
    last = [json.loads(line) for line in (piped / "metrics.jsonl").read_text().splitlines()]
    end = [row["loss"] for row in last if row["kind"] == "step"][-1]
    assert end == pytest.approx(mine[-1]["loss"], rel=1e-6)  # that of the pipeline, had it gone on
    assert end == pytest.approx(known[-1]["loss"], rel=1e-5)


def test_a_pipeline_of_one_process_is_refused_by_name(deeper, tmp_path, capsys):
    assert main(["train", "--run", str(tmp_path / "a"), "--pp", "2", *deeper]) == 1
    assert "--pp 2 needs several processes, started by torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_too_few_micro_batches_are_refused_by_name(torchrun, deeper, tmp_path):
    few = ("--steps", "1", *deeper, "--micro-batch", "4")
    said = torchrun(2, "train", "--run", str(tmp_path / "b"), "--pp", "2", *few, code=1)
    assert "--pp 2 needs 4 micro-batches of 4 rows or more" in said
