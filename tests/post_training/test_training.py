"""The three kinds of training as a whole: resume to the bit, controls, refusals, what the report and the lines tell."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepseek_v3.cli import main
from deepseek_v3.post_training.grpo import judge_rollouts
from deepseek_v3.post_training.options import DistillOptions, GrpoOptions, SftOptions
from deepseek_v3.post_training.session import prepare_grpo
from deepseek_v3.post_training.tasks import is_held_out
from deepseek_v3.post_training.text_session import prepare_distill, prepare_sft
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.training.options import OptionsError
from deepseek_v3.training.report import collect_data
from deepseek_v3.training.signals import StopSignal
from deepseek_v3.training.training_state import newest_checkpoint
from deepseek_v3.weights.shards import load_tensors

SMALL = {"exam_problems": 5, "exam_answers": 2, "shown": 2, "warmup_steps": 2, "save_every": 0, "eval_every": 3}
KINDS = {
    "sft": (SftOptions, prepare_sft, {"task": "addition:1", "examples": 40, "batch_size": 3, "seq_len": 40}),
    "grpo": (GrpoOptions, prepare_grpo, {"task": "addition:1", "questions": 3, "group": 4, "micro_batch": 5}),
    "distill": (DistillOptions, prepare_distill, {"data": "", "task": "", "batch_size": 3, "seq_len": 40}),
}


def make(kind: str, start: Path, run: Path, **changes):
    options, prepare, usual = KINDS[kind]
    places = {"teacher": str(start), "student": str(start)} if kind == "distill" else {"start": str(start)}
    return prepare(options(**{**places, "run": str(run), "steps": 6, **SMALL, **usual, **changes}))


def finish(trainer):
    try:
        return trainer.train()
    finally:
        trainer.close()


@pytest.fixture
def lessons(tmp_path) -> dict:
    path = tmp_path / "lessons.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(30)))
    return {"data": str(path)}


def own_task(folder: Path, rule: str, count: int = 50) -> str:
    """A task of one's own: numbers as prompts, and what it gives for a text."""
    path = folder / "own.py"
    asked = f"def problems():\n    return [str(i) for i in range({count})]\n"
    path.write_text(f"{asked}def reward(problem, text):\n    return {rule}\n")
    return str(path)


def lines(run: Path, kind: str) -> list[dict]:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]


def assert_same(one: Path, other: Path) -> None:
    for stem in ("model", "training_state"):
        a, b = load_tensors(newest_checkpoint(one), stem=stem), load_tensors(newest_checkpoint(other), stem=stem)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


class StopAt(StopSignal):
    """Stops after so many steps."""

    def __init__(self, trainer, step: int) -> None:
        super().__init__()
        self.trainer, self.at = trainer, step

    def __bool__(self) -> bool:
        return self.trainer.step >= self.at


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sft", {}),
        ("sft", {"examples": 0, "pack": False}),
        ("grpo", {}),
        ("grpo", {"updates": 3, "loss": "gspo", "beta": 0.1, "refresh_reference": 2, "drafts": 1, "dynamic": True}),
        ("distill", {}),
    ],
)
def test_six_steps_are_four_a_stop_and_two_bit_by_bit(tmp_path, start, lessons, monkeypatch, kind, changes):
    if kind == "distill":
        changes = {**changes, **lessons, "loss": "forward_kl", "temperature": 1.3}
    assert finish(make(kind, start, tmp_path / "whole", **changes)).finished
    first = make(kind, start, tmp_path / "parts", **changes)
    with monkeypatch.context() as patch:
        patch.setattr("deepseek_v3.training.trainer.StopSignal", lambda: StopAt(first, 4))
        assert finish(first).step == 4
    torch.manual_seed(99)
    options, prepare, _ = KINDS[kind]
    second = prepare(options(run=str(tmp_path / "parts"), resume=True))
    assert second.step == 4
    assert finish(second).finished
    assert_same(tmp_path / "whole", tmp_path / "parts")
    figures = [
        [(r["step"], r["loss"], r["grad_norm"]) for r in lines(tmp_path / n, "step")] for n in ("whole", "parts")
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 6


def test_sums_that_are_drawn_anew_are_never_the_held_out_ones_and_never_those_before(tmp_path, start):
    trainer = make("sft", start, tmp_path / "run", task="addition:2", examples=0)
    asked = []
    for epoch in (0, 1):
        texts = [trainer.tokenizer.decode(d.tokens) for d in trainer.stream.draw(epoch)]
        sums = [re.search(r"(\d+)\+(\d+)=", text).groups() for text in texts]
        asked.append([f"{min(int(a), int(b))}+{max(int(a), int(b))}" for a, b in sums])
    trainer.close()
    trainer.lock.release()
    assert not any(is_held_out(key) for keys in asked for key in keys)
    assert asked[0] != asked[1]
    assert trainer.extras.measure is not None


def test_a_stop_between_micro_batches_rolls_the_rollouts_back(tmp_path, start):
    trainer = make("grpo", start, tmp_path / "run")
    trainer.run_step()
    weights, cursor = {n: p.clone() for n, p in trainer.model.named_parameters()}, trainer.stream.state_dict()

    class SecondAsk:
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked > 2

    assert trainer.run_step(SecondAsk()) is None
    assert (trainer.step, trainer.stream.state_dict()) == (1, cursor)
    assert all(torch.equal(weights[n], p) for n, p in trainer.model.named_parameters())
    trainer.close()
    trainer.lock.release()


def test_lines_and_report_tell_what_a_reader_wants_to_know(tmp_path, start, capsys):
    words = f"grpo {start} --task addition:1 --questions 3 --group 4 --steps 4 --exam-problems 5 --exam-answers 2"
    assert main([*words.split(), "--run", str(tmp_path / "run"), "--eval-every", "2", "--shown", "2"]) == 0
    said = capsys.readouterr().out
    assert "held-out problems right, pass@1" in said
    assert "reward " in said
    steps = lines(tmp_path / "run", "step")
    for name in ("reward", "entropy", "length", "clipped", "alike", "rollout_s", "reward_s", "update_s", "sampler_gap"):
        assert all(math.isfinite(row[name]) for row in steps), name
    assert all(row["sampler_gap"] < 1e-4 for row in steps)
    data = collect_data(read_metrics(tmp_path / "run" / "metrics.jsonl"))["policy"]
    assert data["exams"]["step"] == [0, 2, 4]
    assert data["meters"]["rerouted_tokens"] == [0.0, 0.0, 0.0]
    assert max(data["meters"]["gap_own"]) < 1e-4
    assert len(data["answers"]) == 6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "held-out problems right" in page
    record = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (record["command"], record["options"]["task"]) == ("grpo", "addition:1")


def test_a_run_of_one_command_is_not_gone_on_with_by_another(tmp_path, start, capsys):
    finish(make("grpo", start, tmp_path / "run", steps=1))
    for command in ("train", "sft"):
        assert main([command, "--run", str(tmp_path / "run"), "--resume"]) == 1
        assert "is one of `deepseek-v3 grpo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("grpo", "name the run folder or checkpoint to begin with"),
        ("grpo nowhere", "nowhere"),
        ("grpo START --task subtraction", "there is no task 'subtraction'"),
        ("grpo START --loss ppo", "--loss ppo must be grpo, dr_grpo, dapo, gspo or cispo"),
        ("grpo START --group 1", "--group 1 must be at least 2"),
        ("grpo START --temperature 0", "--temperature 0.0 must be a positive number"),
        ("grpo START --questions 3 --group 5 --updates 2", "--updates 2 must divide 3 questions x 5 answers"),
        ("grpo START --clip-high 0.3", "has one edge for both sides"),
        ("sft START", "name --data dialogues.jsonl, or a --task"),
        ("sft START --seq-len 40 --data nowhere.jsonl", "nowhere.jsonl"),
        ("sft START --task addition --seq-len 65", "exceeds max_position_embeddings=64"),
        ("distill START START", "name --data dialogues.jsonl, or a --task"),
        ("distill START --task addition", "name the run folder or checkpoint to begin with"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, start, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(words.replace("START", str(start)).split()) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_rule_of_ones_own_that_fails_is_counted_and_the_training_goes_on(tmp_path, start):
    own = tmp_path / "own.py"
    own.write_text(
        "def problems():\n    return [str(i) for i in range(50)]\n"
        "def reward(problem, text):\n"
        "    if len(text) % 2: raise OSError\n"
        "    return float('nan') if len(text) % 4 else 1.0\n"
    )
    trainer = make("grpo", start, tmp_path / "run", task=str(own), max_new_tokens=7, steps=2)
    assert finish(trainer).finished
    rows = lines(tmp_path / "run", "step")
    assert sum(row["refused"] for row in rows) > 0
    assert set().union(*(row["refusals"] for row in rows)) <= {"OSError", "returned nan"}


def test_an_answer_that_does_not_end_is_worth_nothing(tmp_path, start):
    trainer = make("grpo", start, tmp_path / "run", task=own_task(tmp_path, "1"), max_new_tokens=12, questions=8)
    problems = trainer.stream.questions(0)
    rollouts = trainer.stream.writer.write(
        [trainer.stream.wording.ask(p["prompt"]) for p in problems], 9, temperature=1, seed=2
    )
    rewards, _ = judge_rollouts(
        trainer.stream.process, trainer.stream.wording, [p for p in problems for _ in range(9)], rollouts
    )
    assert {r.ended for r in rollouts} == {True, False}
    assert rewards == [float(r.ended) for r in rollouts]
    trainer.close()
    trainer.lock.release()


def test_flipped_advantages_are_the_others_with_another_sign(tmp_path, start):
    own = own_task(tmp_path, "len(text) / 9")
    batches = []
    for control in ("none", "flipped", "random"):
        more = {"task": own, "max_new_tokens": 12, "control": control, "questions": 8}
        trainer = make("grpo", start, tmp_path / control, **more)
        batches.append(trainer.stream.next_batch(32))
        trainer.close()
        trainer.lock.release()
    assert torch.equal(batches[0].tokens, batches[1].tokens)
    assert batches[0].advantage.abs().max() > 0
    assert torch.equal(batches[0].advantage, -batches[1].advantage)
    assert not torch.equal(batches[0].advantage, batches[2].advantage)


def test_answers_of_one_rollout_are_spread_over_the_updates_and_each_divides_by_its_own(tmp_path, start):
    trainer = make("grpo", start, tmp_path / "run", updates=4, questions=4, group=3)
    batches = [trainer.stream.next_batch(3) for _ in range(4)]
    assert trainer.stream.phase == 1
    assert not trainer.stream.pending
    assert all(len(batch) == 3 and batch.n_answers in (0, 3) and batch.old is not None for batch in batches)
    assert len({tuple(row) for batch in batches for row in batch.tokens.tolist()}) > 6
    trainer.close()
    trainer.lock.release()


def test_the_teacher_writes_what_the_rule_calls_right_and_each_answer_once(tmp_path, start):
    own = own_task(tmp_path, "len(text) < 9", 12)
    trainer = make("distill", start, tmp_path / "run", task=own, loss="labels", answers=6, steps=1)
    trainer.close()
    trainer.lock.release()
    written = [json.loads(line) for line in (tmp_path / "run" / "written.jsonl").read_text().splitlines()]
    assert written
    assert all(len(row["completion"]) < 9 for row in written)
    assert len({(row["prompt"], row["completion"]) for row in written}) == len(written)


def test_a_student_of_its_own_teacher_has_nothing_to_learn(tmp_path, start, lessons):
    trainer = make("distill", start, tmp_path / "run", **lessons)
    result = trainer.run_step()
    assert abs(result.further["divergence"]) < 1e-6
    assert result.grad_norm < 1e-4
    trainer.close()
    trainer.lock.release()


def test_other_tokenizers_are_refused_for_logits(tmp_path, start, lessons):
    from deepseek_v3.data.tokenizer import Tokenizer
    from deepseek_v3.weights.save import save_model

    trainer = make("sft", start, tmp_path / "sft")
    save_model(trainer.model, tmp_path / "other", Tokenizer.train(["abab abab"] * 9, 268))
    trainer.close()
    trainer.lock.release()
    with pytest.raises(OptionsError, match="different tokenizers"):
        make("distill", start, tmp_path / "run", **lessons, student=str(tmp_path / "other"))


def test_training_ends_once_enough_is_right(tmp_path, start, lessons):
    own = own_task(tmp_path, "1")
    trainer = make("sft", start, tmp_path / "run", **lessons, task=own, stop_at=0.5, steps=30, eval_every=2, lr=0.01)
    outcome = finish(trainer)
    found = [exam["greedy"] >= 0.5 for exam in lines(tmp_path / "run", "exam") if exam["step"]]
    assert outcome.finished
    assert outcome.step < 30
    assert found == [False] * (len(found) - 1) + [True]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_run_that_goes_on_to_the_same_bits(tmp_path, start):
    sizes = {"questions": 3, "group": 4, "steps": 12, "exam-problems": 3, "save-every": 1}
    words = ["--task", "addition:1", *(word for name, n in sizes.items() for word in (f"--{name}", str(n)))]
    command = [sys.executable, "-m", "deepseek_v3", "grpo"]
    subprocess.run([*command, str(start), *words, "--run", str(tmp_path / "whole")], check=True, capture_output=True)
    run = str(tmp_path / "parts")
    ends = [str(start), *words, "--run", run]
    for wait in (3.0, 3.5, 4.2):
        with subprocess.Popen([*command, *ends], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
            time.sleep(wait)
            training.send_signal(signal.SIGKILL)
        saved = (tmp_path / "parts" / "checkpoints").is_dir() and any(
            p.name.startswith("step") for p in (tmp_path / "parts" / "checkpoints").iterdir()
        )
        ends = ["--run", run, "--resume"] if saved else [str(start), *words, "--run", run]
    assert subprocess.run([*command, *ends], capture_output=True, env=os.environ).returncode == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_it_learns_what_is_rewarded(tmp_path, start, loss):
    """Short answers are right: every loss makes them so, and flipped advantages do not."""
    own = own_task(tmp_path, "len(text) < 6", 90)
    more = {"task": own, "max_new_tokens": 24, "loss": loss, "questions": 8, "group": 8, "lr": 3e-3}
    ends = {}
    for control in ("none", "flipped"):
        trainer = make("grpo", start, tmp_path / control, control=control, steps=25, eval_every=0, **more)
        finish(trainer)
        ends[control] = lines(tmp_path / control, "step")
    first, last = (sum(row["reward"] for row in rows) / 5 for rows in (ends["none"][:5], ends["none"][-5:]))
    assert last > first + 0.1
    assert sum(row["reward"] for row in ends["flipped"][-5:]) / 5 < last - 0.1
