"""The command `deepseek-v3 grpo`: learning from right and wrong, by answers that the engine writes.

deepseek-v3 grpo runs/sft --task addition --run runs/grpo
deepseek-v3 grpo runs/sft --task my_task.py --loss dapo
deepseek-v3 grpo --run runs/grpo --resume
"""

from deepseek_v3.commands.post_training import run_post_training
from deepseek_v3.post_training.options import GrpoOptions

__all__ = ["GrpoOptions", "run_grpo"]


def run_grpo(options: GrpoOptions) -> int:
    """Train or resume; returns the exit code."""

    def prepare(*parts):
        from deepseek_v3.post_training.session import prepare_grpo

        return prepare_grpo(*parts)

    return run_post_training(options, prepare)
