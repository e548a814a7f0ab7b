"""A checkpoint that cannot be written: on the way the training goes on, at its end the last good one is named."""

from collections.abc import Callable
from pathlib import Path

from deepseek_v3.parallel.layout import Layout
from deepseek_v3.training.training_state import list_checkpoints
from deepseek_v3.weights.errors import SaveError


class TrainingError(ValueError):
    """Training cannot go on; the message names the last good checkpoint."""


def last_good(run: Path) -> str:
    """Say what there is to go on from."""
    found = list_checkpoints(run)
    if not found:
        return "no checkpoint had been written yet, so begin again"
    return f"the last good checkpoint is {found[-1]}: go on from it with --resume"


def write_by_one(layout: Layout, write: Callable[[], Path]) -> Path:
    """Let the leading process write; all wait for it, and learn how it went.

    Raises:
        OSError: what it met; in every process.
    """
    written: Path | None = None
    problem: OSError | None = None
    if layout.leads:
        try:
            written = write()
        except OSError as error:
            problem = error
    written, said = layout.agree((written, None if problem is None else str(problem)))
    if said is not None:
        raise problem or SaveError(said)
    assert written is not None
    return written


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
