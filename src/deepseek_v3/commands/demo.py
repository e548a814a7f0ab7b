"""`make demo`: train a small DeepSeek-V3 on the text that every Python carries, show what it learned, let it write.

The number of steps follows from the speed of this machine, and follows it on while it trains, so that all of it takes
less than five minutes.
"""

import json
import math
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_v3.commands.demo_facts import CODE_PROMPT, PROSE_PROMPT
from deepseek_v3.commands.telling import steady_output
from deepseek_v3.training.options import OptionsError

if TYPE_CHECKING:
    from rich.console import Console

    from deepseek_v3.training.trainer import Trainer

PROBE_STEPS = 2  # for a first plan; the clock of the training corrects it


@dataclass(frozen=True)
class DemoOptions:
    """Train a small model on real text in minutes and show what it learned.

    Attributes:
        run: the run folder; a former demo in it is replaced.
        minutes: of all of it, set-up not counted; training ends in time for what follows.
        max_steps: a fast machine stops here.
        steps: exactly so many steps, whatever the time; 0 follows the minutes.
        seed: of weights and data order.
    """

    run: str = "runs/demo"
    minutes: float = 4.5
    max_steps: int = 1200
    steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("max_steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionsError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least {least}")
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise OptionsError(f"--minutes {self.minutes} must be a positive number")


def run_demo(options: DemoOptions | None = None) -> int:
    """Train, measure, compare, write; returns the exit code."""
    with steady_output():
        return _demonstrate(options or DemoOptions())


def _demonstrate(options: DemoOptions) -> int:
    from rich.console import Console

    from deepseek_v3.commands.demo_facts import gather_facts, show_facts
    from deepseek_v3.commands.samples import continue_text
    from deepseek_v3.commands.train import STOPPED
    from deepseek_v3.native.heap import keep_freed_memory
    from deepseek_v3.training.deadline import follow_clock
    from deepseek_v3.training.progress import choose_progress
    from deepseek_v3.training.record import record_steps
    from deepseek_v3.training.run_folder import write_files
    from deepseek_v3.training.session import prepare_training

    started = time.perf_counter()
    console = Console(highlight=False)
    console.print("[bold]DeepSeek-V3 from scratch[/]: latent attention, routed experts, multi-token prediction\n")
    clear_former_demo(options.run)
    keep_freed_memory()
    trainer = prepare_training(demo_recipe(options), sampler=continue_text, progress=choose_progress())
    deadline = started + 60 * options.minutes
    plan_steps(trainer, options, deadline, console)
    trained = time.perf_counter()
    outcome = trainer.train(None if options.steps else follow_clock(deadline, options.max_steps))
    record_steps(trainer.options)
    if not outcome.finished:
        go_on = f"deepseek-v3 train --run {shlex.quote(options.run)} --resume"
        console.print(f"stopped by {outcome.stopped_by}; go on with: {go_on}")
        return STOPPED.get(outcome.stopped_by, 1)
    training_s = time.perf_counter() - trained
    console.print("comparing with a 5-gram, gzip and xz on the same bytes ...")
    facts = gather_facts(trainer, training_s)
    write_files(trainer.run, {"facts.json": json.dumps(facts, indent=1) + "\n"})
    show_facts(facts, trainer, console)
    console.print(f"[dim]all in {time.perf_counter() - started:.0f} s, {training_s:.0f} s of them training[/]")
    return 0


def demo_recipe(options: DemoOptions):
    """Return the training options: the report's shape of every schedule, in the proportions of a run of minutes."""
    from deepseek_v3.training.options import TrainOptions

    return TrainOptions(
        run=options.run,
        preset="demo",
        seed=options.seed,
        steps=options.steps or options.max_steps,
        seq_len=256,
        batch_size=4,
        micro_batch=4,
        lr=3e-3,
        warmup_steps=40,
        constant_fraction=0.4,
        lr_end=0.05,
        fim_rate=0.0,
        lanes=128,
        bias_speed=0.01,
        save_every=0,
        keep=1,
        eval_kilobytes=96,
        sample_prompts=(CODE_PROMPT, PROSE_PROMPT),
    )


def clear_former_demo(run: str) -> None:
    """Delete the folder of a former demo, and nothing that is not one."""
    import shutil
    from pathlib import Path

    from deepseek_v3.training.record import recorded_options
    from deepseek_v3.training.run_folder import OPTIONS, check_run_folder

    folder = Path(run)
    check_run_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / OPTIONS).is_file() or CODE_PROMPT not in recorded_options(folder).sample_prompts:
        raise OptionsError(f"--run {run} holds something that is no demo; name another folder")
    shutil.rmtree(folder)


def plan_steps(trainer: "Trainer", options: DemoOptions, deadline: float, console: "Console") -> None:
    """Time a few steps on a copy of the model, then fit the schedule to the time until the deadline."""
    import copy

    from deepseek_v3.data.packing import PackedStream
    from deepseek_v3.training.deadline import fit_steps
    from deepseek_v3.training.trainer import Trainer

    steps = options.steps
    if not steps:
        stream = PackedStream(trainer.stream.texts[:32], trainer.tokenizer, trainer.options.seq_len, lanes=8)
        probe = Trainer(
            copy.deepcopy(trainer.model), trainer.tokenizer, stream, [], trainer.options, arithmetic=trainer.arithmetic
        )
        probe.run_step()
        begun = time.perf_counter()
        for _ in range(PROBE_STEPS):
            probe.run_step()
        step_s = (time.perf_counter() - begun) / PROBE_STEPS
        steps = fit_steps(0, deadline - time.perf_counter(), step_s, options.max_steps)
        console.print(f"a step takes {step_s:.2f} s here: {steps} steps in about {steps * step_s / 60:.1f} minutes\n")
    trainer.options = trainer.options.replace(
        steps=steps, warmup_steps=min(40, -(-steps // 5)), eval_every=max(1, -(-steps // 3))
    )
