"""What `sft`, `grpo` and `distill` have in common: train or resume, write the report, say how to go on."""

import shlex
from collections.abc import Callable
from typing import Any

from deepseek_v3.commands.telling import steady_output
from deepseek_v3.commands.train import STOPPED


def run_post_training(options: Any, prepare: Callable[..., Any]) -> int:
    """Train or resume, then write the report; returns the exit code."""
    with steady_output():
        return _train(options, prepare)


def _train(options: Any, prepare: Callable[..., Any]) -> int:
    from deepseek_v3.native.heap import keep_freed_memory
    from deepseek_v3.training.progress import choose_progress
    from deepseek_v3.training.report import write_report

    keep_freed_memory()
    trainer = prepare(options, choose_progress())
    try:
        outcome = trainer.train()
    finally:
        trainer.close()
    report = write_report(trainer.run)
    run, command = shlex.quote(str(trainer.run)), options.command
    if outcome.finished:
        print(f"\ndone: {outcome.checkpoint}\nreport: {report}")
        return 0
    print(f"\nstopped by {outcome.stopped_by} at step {outcome.step}, saved as {outcome.checkpoint}")
    print(f"go on: deepseek-v3 {command} --run {run} --resume")
    return STOPPED.get(outcome.stopped_by, 1)
