"""When checkpoints of a training are written, and what happens if one cannot be.

On the way the training goes on, at its end the last good one is named. Of many processes each writes its parts beside
the next steps; whether that went well is learned when the next checkpoint is due, or at the end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from deepseek_v3.training.training_state import list_checkpoints


class TrainingError(ValueError):
    """Training cannot go on; the message names the last good checkpoint."""


def last_good(run: Path) -> str:
    """Say what there is to go on from."""
    found = list_checkpoints(run)
    if not found:
        return "no checkpoint had been written yet, so begin again"
    return f"the last good checkpoint is {found[-1]}: go on from it with --resume"


class OnItsWay(Protocol):
    """A checkpoint that is being written."""

    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class Saving:
    """The checkpoints of one training.

    Args:
        save: writes one, or begins to and returns what is on its way.
        tell: of one that could not be written.
        at: the step that a checkpoint of this run is of already.
    """

    def __init__(self, save: Callable[[], OnItsWay | None], run: Path, tell: Callable[[str], None], at: int) -> None:
        self.save, self.run, self.tell, self.at = save, run, tell, at
        self.pending: OnItsWay | None = None

    def on_the_way(self, step: int) -> None:
        """Write a checkpoint of this step, or tell what was in the way."""
        self._settle()
        try:
            self.pending, self.at = self.save(), step
        except OSError as error:
            self._tell(error)

    def at_the_end(self, step: int) -> None:
        """Have a checkpoint of this step on disk.

        Raises:
            TrainingError: it could not be written, and what there is to go on from.
        """
        self._settle()
        if self.at == step:
            return
        try:
            pending = self.save()
            if pending is not None:
                pending.finish()
        except OSError as error:
            raise TrainingError(f"the last checkpoint was not written ({error}); {last_good(self.run)}") from None

    def abandon(self) -> None:
        """Let what is on its way come to its end."""
        if self.pending is not None:
            self.pending.abandon()

    def _settle(self) -> None:
        pending, self.pending = self.pending, None
        try:
            if pending is not None:
                pending.finish()
        except OSError as error:
            self.at = -1
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        self.tell(f"the checkpoint was not written ({error}); {last_good(self.run)}")
