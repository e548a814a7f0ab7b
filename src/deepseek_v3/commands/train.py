"""The command `deepseek-v3 train`: where training meets generation, for the samples of the report.

deepseek-v3 train --data stdlib --preset nano --run runs/first
deepseek-v3 train --run runs/first --resume
"""

import os
import shlex

from deepseek_v3.commands.telling import steady_output
from deepseek_v3.training.options import TrainOptions

__all__ = ["TrainOptions", "run_train"]

STOPPED = {"SIGTERM": 143, "SIGINT": 130}  # what a shell expects: 128 and the number of the signal


def run_train(options: TrainOptions) -> int:
    """Train or resume, then write the report; returns the exit code.

    A standard output that closes or is full ends the telling, not the training.
    """
    with steady_output():
        code = _train(options)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one of many
        from deepseek_v3.parallel.mesh import leave

        leave(code)
    return code


def _train(options: TrainOptions) -> int:
    from deepseek_v3.commands.samples import continue_text
    from deepseek_v3.native.heap import keep_freed_memory
    from deepseek_v3.training.progress import choose_progress
    from deepseek_v3.training.report import write_report
    from deepseek_v3.training.session import prepare_training

    keep_freed_memory()
    trainer = prepare_training(options, sampler=continue_text, progress=choose_progress())
    outcome = trainer.train()
    if not trainer.layout.leads:
        trainer.layout.close()
        return 0 if outcome.finished else STOPPED.get(outcome.stopped_by, 1)
    report = write_report(trainer.run)
    trainer.layout.close()
    if outcome.finished:
        print(f"\ndone: {outcome.checkpoint}\nreport: {report}")
        print(f'try: deepseek-v3 generate {shlex.quote(str(trainer.run))} --prompt "def"')
        return 0
    print(f"\nstopped by {outcome.stopped_by} at step {outcome.step}, saved as {outcome.checkpoint}")
    print(f"go on: deepseek-v3 train --run {shlex.quote(str(trainer.run))} --resume")
    return STOPPED.get(outcome.stopped_by, 1)
