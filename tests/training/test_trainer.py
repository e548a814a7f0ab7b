"""The loop: resume is bitwise, a stop is clean, a loss that is not finite changes nothing, a kill breaks nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import PackedStream
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.deadline import follow_clock
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.results import Arithmetic
from deepseek_v3.training.signals import StopSignal
from deepseek_v3.training.trainer import Trainer, TrainingError
from deepseek_v3.training.training_state import list_checkpoints, newest_checkpoint, read_training_state
from deepseek_v3.weights.shards import load_tensors

TEXTS = [f"passage {i}: " + " ".join(str((i * j) % 97) for j in range(60)) for i in range(23)]


def tiny_trainer(run: Path, precision: str = "fp32", **changes) -> Trainer:
    """Return a trainer over a model with every mechanism, small enough for milliseconds a step."""
    options = TrainOptions(
        run=str(run), seed=5, warmup_steps=3, lr=3e-3, fim_rate=0.3, ema_decay=0.9, save_every=0, bias_speed=0.01
    ).replace(**{"seq_len": 13, "batch_size": 6, "micro_batch": 2, "steps": 20, "eval_every": 7, **changes})
    tokenizer = Tokenizer.train(TEXTS, 300)
    torch.manual_seed(options.seed)
    model = DeepseekV3(tiny_config())
    stream = PackedStream(TEXTS, tokenizer, options.seq_len, seed=options.seed, fim_rate=options.fim_rate, lanes=4)
    return Trainer(model, tokenizer, stream, TEXTS[:2], options, arithmetic=Arithmetic(precision))


def tiny_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=307,
        hidden_size=22,
        intermediate_size=26,
        moe_intermediate_size=7,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        q_lora_rank=11,
        kv_lora_rank=5,
        qk_nope_head_dim=7,
        qk_rope_head_dim=4,
        v_head_dim=3,
        n_routed_experts=6,
        num_experts_per_tok=2,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    )


def losses_of(run: Path) -> list[tuple[int, float, float, float]]:
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
    return [(row["step"], row["loss"], row["mtp_loss"], row["grad_norm"]) for row in rows]


def assert_same_state(one: Path, other: Path) -> None:
    """Every tensor bit by bit: weights, biases, moments, averaged weights, random state; and the data cursor."""
    for stem in ("model", "training_state"):
        a, b = load_tensors(one, stem=stem), load_tensors(other, stem=stem)
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name
    states = [json.loads((folder / "training_state.json").read_text()) for folder in (one, other)]
    for state in states:
        del state["saved"]
    assert states[0] == states[1]


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_twenty_steps_are_ten_a_stop_and_ten_bit_by_bit(precision, tmp_path):
    tiny_trainer(tmp_path / "whole", precision).train()

    class StopAfterTen(StopSignal):
        def __bool__(self) -> bool:
            return first.step >= 10

    first = tiny_trainer(tmp_path / "parts", precision)
    import deepseek_v3.training.trainer as trainer_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "StopSignal", StopAfterTen)
        outcome = first.train()
    assert (outcome.step, outcome.finished) == (10, False)
    torch.manual_seed(999)  # nothing may hang on the random state of the new process
    second = tiny_trainer(tmp_path / "parts", precision)
    second.resume(newest_checkpoint(tmp_path / "parts"))
    assert second.train().finished
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    assert_same_state(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))


def test_a_stop_between_micro_batches_rolls_the_step_back(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.run_step()
    before, cursor = snapshot(trainer), trainer.stream.state_dict()

    class SecondAsk:
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked > 2

    assert trainer.run_step(SecondAsk()) is None
    assert (trainer.step, trainer.stream.state_dict()) == (1, cursor)
    assert unchanged(before, snapshot(trainer))


def snapshot(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a skipped step must not touch."""
    from deepseek_v3.training.optimizer import moments_by_name

    tensors = {**trainer.model.state_dict(), **moments_by_name(trainer.model, trainer.optimizer)}
    tensors |= {f"averaged.{name}": value for name, value in trainer.averaged.shadow.items()}
    return {name: value.clone() for name, value in tensors.items()}


def unchanged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def poison(trainer: Trainer, steps: set[int], where: str) -> None:
    """Make loss or gradient of these steps not finite."""
    layout = trainer.update.layout
    accumulate = layout.accumulate

    def poisoned(step, batch, should_stop):
        hit = trainer.step in steps
        weight = trainer.model.norm.weight
        handle = weight.register_hook(lambda g: g * float("inf")) if hit and where == "gradient" else None
        kept = weight.data.clone()
        if hit and where == "loss":
            weight.data[0] = float("nan")
        parts = accumulate(step, batch, should_stop)
        weight.data.copy_(kept)
        if handle:
            handle.remove()
        return parts

    layout.accumulate = poisoned


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, where):
    trainer = tiny_trainer(tmp_path)
    trainer.run_step()
    poison(trainer, {1}, where)
    before = snapshot(trainer)
    result = trainer.run_step()
    assert (result.applied, trainer.skipped, trainer.failures, trainer.step) == (False, 1, 1, 2)
    assert unchanged(before, snapshot(trainer))
    assert trainer.run_step().applied
    assert (trainer.skipped, trainer.failures) == (1, 0)
    assert not unchanged(before, snapshot(trainer))


def test_the_third_failure_in_a_row_stops_and_names_the_last_good_checkpoint(tmp_path):
    trainer = tiny_trainer(tmp_path, save_every=2)
    poison(trainer, {1, 3, 4, 5}, "loss")
    with pytest.raises(TrainingError, match="step-00000004"):
        trainer.train()
    assert trainer.skipped == 4
    assert read_training_state(newest_checkpoint(tmp_path))[1]["step"] == 4
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "skipped"] == [2, 4, 5, 6]


def test_accumulation_does_not_change_the_step(tmp_path):
    """Six rows at once or in three parts: the same loss and, within rounding of FP32 sums, the same gradient norm."""
    whole = tiny_trainer(tmp_path / "a", micro_batch=6).run_step()
    parts = tiny_trainer(tmp_path / "b", micro_batch=2).run_step()
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert parts.loads == whole.loads


def test_only_the_newest_checkpoints_stay(tmp_path):
    tiny_trainer(tmp_path, steps=9, save_every=2, keep=2, eval_every=0).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008", "step-00000009"]


def test_the_loss_falls_and_the_averaged_weights_follow(tmp_path):
    trainer = tiny_trainer(tmp_path, steps=30, eval_every=30)
    trainer.train()
    losses = [loss for _, loss, _, _ in losses_of(tmp_path)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "averaged"] == [30]


class SlowingMachine:
    """Lends a trainer a clock by which a step takes half a second, and from a moment on a whole one."""

    MEASURING, WRITING = 15, 15  # take as long as so many steps

    def __init__(self, trainer: Trainer, slow_from: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slow_from = 0.0, slow_from
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        for name, steps in (("run_step", 1), ("examine", self.MEASURING)):
            monkeypatch.setattr(trainer, name, self.taking(steps, getattr(trainer, name)))

    def step_s(self) -> float:
        return 0.5 if self.now < self.slow_from else 1.0

    def taking(self, steps: int, work):
        def timed(stop):
            self.now += steps * self.step_s()
            return work(stop)

        return timed


@pytest.mark.parametrize("slow_from", [0, 30, 60, 90, 999])
def test_a_training_ends_at_its_deadline_on_a_machine_that_becomes_slow(tmp_path, monkeypatch, slow_from):
    trainer = tiny_trainer(tmp_path, steps=210, eval_every=70, seq_len=5, batch_size=2)
    machine = SlowingMachine(trainer, slow_from, monkeypatch)
    outcome = trainer.train(replan=follow_clock(130.0, most=300))
    assert outcome.finished
    assert outcome.step == trainer.options.steps
    rates = [row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "step"]
    assert len(rates) == outcome.step
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] <= 0.11 * trainer.options.lr  # the cosine came to its end
    over = machine.now + machine.WRITING * machine.step_s()
    assert 0.85 * 130 < over <= 130 + machine.MEASURING * machine.step_s()  # a measurement just before the end is late


def test_without_a_plan_the_steps_are_those_of_the_options(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, steps=70, eval_every=0, seq_len=5, batch_size=2)
    SlowingMachine(trainer, 0, monkeypatch)
    assert trainer.train().step == 70


def test_resuming_with_other_data_is_refused(tmp_path):
    tiny_trainer(tmp_path, steps=2).train()
    other = tiny_trainer(tmp_path, steps=2, seq_len=11)
    with pytest.raises(ValueError, match="the data changed"):
        other.resume(newest_checkpoint(tmp_path))


NURSERY = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trainer import tiny_trainer
from deepseek_v3.training.training_state import list_checkpoints
run = Path({run!r})
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        trainer = tiny_trainer(run, steps=10**6, save_every=int(line), eval_every=0, keep=2)
        if list_checkpoints(run):
            trainer.resume(list_checkpoints(run)[-1])
        print(trainer.train().stopped_by, flush=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """A process that has everything imported and starts runs by forking, one at a time."""

    def __init__(self, run: Path) -> None:
        self.run = run
        code = NURSERY.format(tests=str(Path(__file__).parent), run=str(run))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def start(self, save_every: int) -> int:
        """Start a run and return its process id once it has done a step more than its checkpoint."""
        reached = int(list_checkpoints(self.run)[-1].name[5:]) if list_checkpoints(self.run) else 0
        print(save_every, file=self.process.stdin, flush=True)
        child = int(self.process.stdout.readline())
        while not any(step > reached for step, *_ in losses_of(self.run)):
            assert self.process.poll() is None
            time.sleep(0.005)
        return child

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def test_sigterm_saves_and_ends_within_thirty_seconds(tmp_path):
    with Nursery(tmp_path) as nursery:
        child = nursery.start(save_every=0)
        sent = time.monotonic()
        os.kill(child, signal.SIGTERM)
        assert nursery.read() == "SIGTERM"
        assert nursery.read() == "0"
        assert time.monotonic() - sent < 30
    assert read_training_state(newest_checkpoint(tmp_path))[1]["step"] >= 1


def kill_while_saving(tmp_path: Path, times: int) -> None:
    """Kill a run that saves after every step, at random moments; each time the newest checkpoint loads and goes on."""
    rng, reached = random.Random(7), 0
    with Nursery(tmp_path) as nursery:
        for _ in range(times):
            child = nursery.start(save_every=1)
            begun = time.monotonic()
            while not (tmp_path / "checkpoints" / f"step-{reached + 1:08d}").exists():
                time.sleep(0.005)
            time.sleep(rng.random() * 2 * (time.monotonic() - begun))  # the next save is about as long
            os.kill(child, signal.SIGKILL)
            assert nursery.read() == str(int(signal.SIGKILL))
            trainer = tiny_trainer(tmp_path)
            trainer.resume(newest_checkpoint(tmp_path))
            assert trainer.step > reached
            reached = trainer.step


def test_a_kill_while_saving_leaves_the_newest_checkpoint_whole(tmp_path):
    kill_while_saving(tmp_path, 5)


@pytest.mark.slow
def test_fifty_kills_while_saving_leave_the_newest_checkpoint_whole(tmp_path):
    kill_while_saving(tmp_path, 50)


def test_a_full_disk_stops_with_one_line_and_the_older_checkpoint_stands(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, steps=4, save_every=2, eval_every=0)
    save, asked = trainer.save, []

    def full_at_the_second():
        asked.append(trainer.step)
        if len(asked) == 2:
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        return save()

    trainer.save = full_at_the_second
    with pytest.raises(TrainingError, match=r"are free.*last good checkpoint is .*step-00000002") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    again = tiny_trainer(tmp_path, steps=4)
    again.resume(newest_checkpoint(tmp_path))
    assert (asked, again.step) == ([2, 4, 4], 2)  # tried once more at the end
