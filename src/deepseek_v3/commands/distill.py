"""The command `deepseek-v3 distill`: a student learns from a teacher.

deepseek-v3 distill runs/large runs/small --task addition --run runs/distill
deepseek-v3 distill runs/large runs/small --data dialogues.jsonl --loss reverse_kl
"""

from deepseek_v3.commands.post_training import run_post_training
from deepseek_v3.post_training.options import DistillOptions

__all__ = ["DistillOptions", "run_distill"]


def run_distill(options: DistillOptions) -> int:
    """Train or resume; returns the exit code."""

    def prepare(*parts):
        from deepseek_v3.post_training.text_session import prepare_distill

        return prepare_distill(*parts)

    return run_post_training(options, prepare)
