"""A training on several processes is the training of one: `deepseek-v3 train` by torchrun, in FP32 over gloo."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from deepseek_v3.cli import main
from deepseek_v3.weights.opening import open_checkpoint
from deepseek_v3.weights.sharded import PartsReader

STEPS = 5


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", "--run", str(run), "--steps", str(STEPS), "--sample-prompts", "x", *words]) == 0
    return run


def steps(run: Path) -> list[dict]:
    """The lines of its steps."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "step"]


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """What its checkpoint holds, of whichever form."""
    with open_checkpoint(run / "checkpoints" / f"step-{step:08d}") as checkpoint:
        return {slot.name: checkpoint.view(slot.name).clone() for slot in checkpoint.check()}


def agree(run: Path, other: Path, *, loss: float = 1e-6, norm: float = 1e-5) -> None:
    """Losses, norms, counts and biases are those of the other run."""
    mine, known = steps(run), steps(other)
    assert len(mine) == len(known) > 0
    for a, b in zip(mine, known):
        assert a["tokens"] == b["tokens"]
        assert a["loss"] == pytest.approx(b["loss"], rel=loss)
        assert a["mtp_loss"] == pytest.approx(b["mtp_loss"], rel=loss)
        assert a["balance_loss"] == pytest.approx(b["balance_loss"], rel=loss)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=norm)
    # of the first step the weights are the same bits, so the counts are
    assert mine[0]["loads"] == known[0]["loads"]
    for name, bias in weights(run).items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(bias, weights(other)[name])


def test_one_process_under_torchrun_gives_the_bits_of_one_alone(torchrun, words, alone, tmp_path):
    torchrun(1, "train", "--run", str(tmp_path / "run"), "--steps", str(STEPS), *words)
    for name in ("loss", "mtp_loss", "balance_loss", "grad_norm", "loads"):
        assert [row.get(name) for row in steps(tmp_path / "run")] == [row.get(name) for row in steps(alone)]
    known = weights(alone)
    assert all(torch.equal(value, known[name]) for name, value in weights(tmp_path / "run").items())


WAYS = {"2-1": (2, 1, []), "4-2": (4, 2, ["--recompute"])}  # with recomputation loads are counted once all the same
SLOW = {"4-1": (4, 1, []), "4-4": (4, 4, []), "4-2-kept": (4, 2, []), "2-2-recomputed": (2, 2, ["--recompute"])}
RUNS = [pytest.param(*ways, id=name) for name, ways in WAYS.items()]
RUNS += [pytest.param(*ways, id=name, marks=pytest.mark.slow) for name, ways in SLOW.items()]


@pytest.mark.parametrize(("processes", "ep", "more"), RUNS)
def test_several_processes_make_the_steps_of_one(torchrun, words, alone, tmp_path, processes, ep, more):
    run = tmp_path / "run"
    torchrun(processes, "train", "--run", str(run), "--ep", str(ep), "--steps", str(STEPS), *words, *more)
    agree(run, alone)


@pytest.fixture(scope="module")
def two(torchrun, words, tmp_path_factory) -> Path:
    """The run of two processes that share the experts; checkpoints of the steps 3 and 5."""
    run = tmp_path_factory.mktemp("two") / "run"
    torchrun(2, "train", "--run", str(run), "--ep", "2", "--steps", str(STEPS), *words)
    return run


def test_two_that_share_the_experts_make_the_steps_of_one(two, alone):
    agree(two, alone)


def at_step_3(run: Path, place: Path) -> Path:
    """A copy of a run whose newest checkpoint is that of step 3."""
    shutil.copytree(run, place)
    drop_checkpoints(place, 5)
    return place


def drop_checkpoints(run: Path, *steps: int) -> None:
    """Let a run have come less far."""
    for step in steps:
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")


def test_two_that_go_on_from_two_give_the_bits_of_an_unbroken_run(torchrun, two, tmp_path):
    run = at_step_3(two, tmp_path / "again")
    torchrun(2, "train", "--run", str(run), "--ep", "2", "--resume")
    mine, known = (PartsReader(r / "checkpoints" / "step-00000005") for r in (run, two))
    assert mine.tensors.keys() == known.tensors.keys() > {"exp_avg.embed_tokens.weight", "model.norm.weight"}
    assert all(torch.equal(mine.read(name), known.read(name)) for name in known.tensors)


def test_a_run_of_two_goes_on_alone_and_a_run_of_one_goes_on_with_two(torchrun, words, alone, two, tmp_path):
    run, one = at_step_3(two, tmp_path / "alone"), tmp_path / "one"
    assert main(["train", "--run", str(run), "--resume"]) == 0
    assert (run / "checkpoints" / "step-00000005" / "model.safetensors").exists()  # one process writes its own form
    assert steps(run)[-1]["loss"] == pytest.approx(steps(alone)[-1]["loss"], rel=1e-6)
    assert main(["train", "--run", str(one), "--steps", "3", "--sample-prompts", "x", *words]) == 0
    torchrun(2, "train", "--run", str(one), "--resume", "--steps", str(STEPS))
    assert steps(one)[-1]["loss"] == pytest.approx(steps(alone)[-1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_run_of_four_goes_on_with_two_and_then_alone(torchrun, words, alone, tmp_path):
    run = tmp_path / "run"  # the number of steps stays: the schedules hang on it
    torchrun(4, "train", "--run", str(run), "--ep", "2", "--steps", str(STEPS), *words, "--save-every", "2")
    drop_checkpoints(run, 4, 5)
    torchrun(2, "train", "--run", str(run), "--resume")
    drop_checkpoints(run, 5)
    assert main(["train", "--run", str(run), "--resume"]) == 0
    assert steps(run)[-1]["loss"] == pytest.approx(steps(alone)[-1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_killed_worker_comes_back_and_the_end_is_that_of_an_unbroken_run(torchrun, words, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    torchrun(2, "train", "--run", str(whole), "--ep", "2", "--steps", "24", *words)
    away: list[float] = []
    killer = threading.Thread(target=kill_a_worker, args=(broken, 6, away))
    killer.start()
    torchrun(2, "train", "--run", str(broken), "--ep", "2", "--steps", "24", *words, more=("--max-restarts", "2"))
    killer.join()
    assert repr(steps(broken)[-1]["loss"]) == repr(steps(whole)[-1]["loss"])
    print(f"from the kill to the next checkpoint: {away[0]:.1f} s")
    assert away[0] < 60


def kill_a_worker(run: Path, step: int, away: list[float]) -> None:
    """Kill the last process of a run once it has a checkpoint of that step; note the seconds until there is a newer."""
    deadline = time.monotonic() + 100
    while not (run / "checkpoints" / f"step-{step:08d}").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if str(run).encode() in words and b"LOCAL_RANK=1" in environment:
            workers.append(int(process.name))
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    killed, newest = time.monotonic(), newest_name(run)
    while newest_name(run) <= newest and time.monotonic() < killed + 200:
        time.sleep(0.05)
    away.append(time.monotonic() - killed)


def newest_name(run: Path) -> str:
    """Of the whole checkpoints; nothing is cleared away beside a run that is at work."""
    return max(path.name for path in (run / "checkpoints").glob("step-*"))


def test_what_cannot_be_shared_is_refused_by_name(torchrun, words, tmp_path, capsys):
    assert main(["train", "--run", str(tmp_path / "a"), "--ep", "2", *words]) == 1
    assert "torchrun" in capsys.readouterr().err
    said = torchrun(2, "train", "--run", str(tmp_path / "b"), "--steps", "1", *words, "--batch-size", "7", code=1)
    assert "a batch of 7 rows cannot be shared by 2 processes" in said


@pytest.mark.slow
def test_replicas_of_the_weights_make_the_steps_of_one_and_go_on_otherwise(torchrun, words, alone, tmp_path):
    run = tmp_path / "run"
    torchrun(4, "train", "--run", str(run), "--replicas", "2", "--steps", str(STEPS), *words)
    agree(run, alone)
    again = at_step_3(run, tmp_path / "again")
    torchrun(2, "train", "--run", str(again), "--ep", "2", "--resume")
    assert steps(again)[-1]["loss"] == pytest.approx(steps(alone)[-1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_thirty_runs_of_four_processes_end_well(torchrun, words, tmp_path):
    for i in range(30):
        run = str(tmp_path / str(i))
        torchrun(4, "train", "--run", run, "--ep", "2", "--steps", "1", *words, "--eval-every", "0")
