"""`make reason`: from nothing to a model that adds, in four acts on two cores, and a page of what happened.

    1  pretraining      text of sums and counting, a line each
    2  fine-tuning      dialogues of sums, others in every step, until some of the held-out ones are right: a weak start
    3  GRPO             right and wrong and nothing else
    4  the page         before and after on held-out problems, answers on the way, what other experts would have done

Each act has its share of the minutes; on a slow machine there are fewer steps, and the page says how many.
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_v3.commands.telling import steady_output
from deepseek_v3.training.options import OptionsError

ACTS = {"pretraining": 0.17, "fine-tuning": 0.25, "grpo": 0.5}  # of the minutes; the rest is for the page
WEAK = 0.35  # of the held-out problems, greedily: at 0.25 some starts still guess a digit, and learn little
LINES = 150_000  # of the text to begin with
DIGITS = 2  # with three, the middle one alone takes as long to be found as all of this
TASK = f"addition:{DIGITS}"


@dataclass(frozen=True)
class ReasonOptions:
    """Train a model from nothing to one that adds, by rewards, and show what happened.

    Attributes:
        run: the folder of the runs; a former one of this command is replaced.
        minutes: of all of it, set-up not counted.
        seed: of weights, data and draws.
        loss: of the third act: grpo, dr_grpo, dapo, gspo or cispo.
        acts: 1 ends after pretraining, 2 after fine-tuning: what other runs may begin with.
    """

    run: str = "runs/reason"
    minutes: float = 14.0
    seed: int = 0
    loss: str = "grpo"
    acts: int = 3

    def __post_init__(self) -> None:
        from deepseek_v3.post_training.options import LOSSES

        if not self.run.strip():
            raise OptionsError("--run is empty; leave it out for 'runs/reason', or name one")
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise OptionsError(f"--minutes {self.minutes} must be a positive number")
        if not 0 <= self.seed < 2**63:
            raise OptionsError(f"--seed {self.seed} must be at least 0 and below 2^63")
        if not 1 <= self.acts <= len(ACTS):
            raise OptionsError(f"--acts {self.acts} must be 1, 2 or 3")
        if self.loss not in LOSSES:
            raise OptionsError(f"--loss {self.loss} must be one of {', '.join(LOSSES)}")


def run_reason(options: ReasonOptions | None = None) -> int:
    """Run the acts and write the page; returns the exit code."""
    with steady_output():
        return _reason(options or ReasonOptions())


def _reason(options: ReasonOptions) -> int:
    from rich.console import Console

    from deepseek_v3.commands.reason_facts import gather_facts, show_facts
    from deepseek_v3.native.heap import keep_freed_memory

    console, clock = Console(highlight=False), time.perf_counter()
    console.print("[bold]From nothing to a model that adds[/]: text, dialogues, then right and wrong alone\n")
    folder = clear_former(Path(options.run))
    keep_freed_memory()
    spent: dict[str, float] = {}
    acts = {"pretraining": pretrain, "fine-tuning": fine_tune, "grpo": reinforce}
    for act, prepare in list(acts.items())[: options.acts]:
        console.print(f"\n[bold]{act}[/]")
        begun = time.perf_counter()
        trainer = prepare(folder, options)
        deadline = begun + 60 * options.minutes * ACTS[act]
        code = learn(trainer, deadline, act)
        spent[act] = time.perf_counter() - begun
        if code:
            return code
    if options.acts < len(ACTS):
        return 0
    console.print("\nmeasuring what samplers in other number formats would have chosen ...")
    facts = gather_facts(folder, spent, time.perf_counter() - clock)
    facts["seconds"]["processor"], facts["task"] = time.process_time(), TASK
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    show_facts(facts, folder, console)
    return 0


def learn(trainer: Any, deadline: float, act: str) -> int:
    """Train until done or until the deadline, write the report; returns the exit code."""
    from deepseek_v3.commands.train import STOPPED
    from deepseek_v3.training.deadline import follow_clock
    from deepseek_v3.training.report import write_report

    try:
        outcome = trainer.train(follow_clock(deadline, trainer.options.steps))
    finally:
        if act != "pretraining":
            trainer.close()
    write_report(trainer.run)
    if outcome.finished:
        return 0
    print(f"stopped by {outcome.stopped_by} in {act}")
    return STOPPED.get(outcome.stopped_by, 1)


def clear_former(folder: Path) -> Path:
    """Delete the folder of a former call, and nothing that is not one.

    Raises:
        OptionsError: it holds something else.
    """
    import shutil

    from deepseek_v3.training.run_folder import check_run_folder

    check_run_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "text.txt").is_file() or not (folder / "tokenizer.json").is_file():
            raise OptionsError(f"--run {folder} holds something that this command did not make; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_text(seed: int, count: int = LINES) -> Iterator[str]:
    """Yield lines of sums, units first, of counting, and of numbers written backwards; no sum that is held out."""
    from deepseek_v3.post_training.tasks import draw_problems, find_task

    rng = random.Random(f"text {seed}")
    sums = {
        digits: draw_problems(find_task(f"addition:{digits}"), f"text {seed}", held_out=False)
        for digits in range(1, DIGITS + 1)
    }
    for _ in range(count):
        kind, number = rng.random(), rng.randrange(995)
        if kind < 0.8:
            problem = next(sums[rng.choice((1, *[DIGITS] * 3))])
            yield problem["prompt"] + str(problem["sum"])[::-1]
        elif kind < 0.9:
            yield " ".join(str(n) for n in range(number, number + 5))
        else:
            yield f"{number}>{str(number)[::-1]}"


def pretrain(folder: Path, options: ReasonOptions):
    """Prepare the first act: a tokenizer of single bytes, a text, the common trainer."""
    from deepseek_v3.data.tokenizer import SMALLEST_VOCAB, Tokenizer
    from deepseek_v3.training.options import TrainOptions
    from deepseek_v3.training.progress import choose_progress
    from deepseek_v3.training.session import prepare_training

    (folder / "text.txt").write_text("\n".join(write_text(options.seed)) + "\n", encoding="utf-8")
    Tokenizer.train([], SMALLEST_VOCAB).save(folder)
    return prepare_training(
        TrainOptions(
            run=str(folder / "pretrained"), preset="reason", data=str(folder / "text.txt"), seed=options.seed,
            tokenizer=str(folder / "tokenizer.json"), fim_rate=0.0, lanes=64, seq_len=128, batch_size=24,
            micro_batch=24, steps=200, lr=3e-3, warmup_steps=20, constant_fraction=0.6, bias_speed=0.01,
            precision="fp32", save_every=0, keep=1, eval_every=0, eval_kilobytes=16, sample_prompts=("12+34=",),
        ),
        progress=choose_progress(),
    )  # fmt: skip


def fine_tune(folder: Path, options: ReasonOptions):
    """Prepare the second act: dialogues of sums, drawn anew, until some of those that were never shown are right.

    A start that knows some digits and guesses another is too weak: rewards then make the guess firm, and end there.
    """
    from deepseek_v3.post_training.options import SftOptions
    from deepseek_v3.post_training.text_session import prepare_sft
    from deepseek_v3.training.progress import choose_progress

    return prepare_sft(
        SftOptions(
            start=str(folder / "pretrained"), run=str(folder / "sft"), task=TASK, pack=False, seq_len=32,
            batch_size=128, micro_batch=128, steps=1500, lr=1e-3, lr_end=1.0, warmup_steps=10, eval_every=5,
            save_every=0, keep=1, stop_at=WEAK, exam_answers=0, seed=options.seed, mtp_weight=0.0,
        ),
        choose_progress(),
    )  # fmt: skip


def reinforce(folder: Path, options: ReasonOptions):
    """Prepare the third act: rewards and nothing else."""
    from deepseek_v3.post_training.options import GrpoOptions
    from deepseek_v3.post_training.session import prepare_grpo
    from deepseek_v3.training.progress import choose_progress

    return prepare_grpo(
        GrpoOptions(
            start=str(folder / "sft"), run=str(folder / "grpo"), task=TASK, loss=options.loss, steps=200, lr=3e-4,
            questions=64, group=32, eval_every=20, save_every=0, keep=1, seed=options.seed, shown=6,
        ),
        choose_progress(),
    )  # fmt: skip
