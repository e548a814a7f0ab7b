"""A checkpoint that cannot be written: on the way the training goes on, at its end the last good one is named."""

from collections.abc import Callable
from pathlib import Path

from deepseek_v3.training.training_state import list_checkpoints


class TrainingError(ValueError):
    """Training cannot go on; the message names the last good checkpoint."""


def last_good(run: Path) -> str:
    """Say what there is to go on from."""
    found = list_checkpoints(run)
    if not found:
        return "no checkpoint had been written yet, so begin again"
    return f"the last good checkpoint is {found[-1]}: go on from it with --resume"


def save_or_go_on(save: Callable[[], Path], run: Path, tell: Callable[[str], None]) -> bool:
    """Write a checkpoint on the way; return whether it was, and tell what was in the way."""
    try:
        save()
    except OSError as error:
        tell(f"the checkpoint was not written ({error}); {last_good(run)}")
        return False
    return True


def save_or_end(save: Callable[[], Path], run: Path) -> None:
    """Write the last checkpoint.

    Raises:
        TrainingError: it could not be written, and what there is to go on from.
    """
    try:
        save()
    except OSError as error:
        raise TrainingError(f"the last checkpoint was not written ({error}); {last_good(run)}") from None
