"""The command `deepseek-v3 sft`: fine-tuning on dialogues, the loss on answers only.

deepseek-v3 sft runs/first --data dialogues.jsonl --run runs/sft
deepseek-v3 sft runs/first --task addition --stop-at 0.3
deepseek-v3 sft --run runs/sft --resume
"""

from deepseek_v3.commands.post_training import run_post_training
from deepseek_v3.post_training.options import SftOptions

__all__ = ["SftOptions", "run_sft"]


def run_sft(options: SftOptions) -> int:
    """Train or resume; returns the exit code."""

    def prepare(*parts):
        from deepseek_v3.post_training.text_session import prepare_sft

        return prepare_sft(*parts)

    return run_post_training(options, prepare)
