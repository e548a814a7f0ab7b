"""What can be wrong with a checkpoint, said in one line: which file, which tensor, what, and the mend.

Every refusal of this room is a `CheckpointError`, so a caller needs one `except`; the subclasses say which kind.
"""

from os import PathLike


class CheckpointError(ValueError):
    """A checkpoint is broken, or does not fit: `file`, `tensor` and `mend` are attributes too."""

    def __init__(
        self, problem: str, *, file: "str | PathLike | None" = None, tensor: str | None = None, mend: str = ""
    ):
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.mend = mend
        place = [] if file is None else [clip(str(file), 300)]
        place += [] if tensor is None else [f"tensor {clip(tensor)}"]
        super().__init__(": ".join([*place, problem]) + (f"; {mend}" if mend else ""))


class HeaderError(CheckpointError):
    """A .safetensors header that is not exactly what the format allows."""


class IndexFileError(CheckpointError):
    """A `model.safetensors.index.json` that is malformed or does not tell the truth about its shards."""


class UnsafePathError(CheckpointError):
    """A name that would leave the checkpoint's folder."""


class ConfigFileError(CheckpointError):
    """A config.json that cannot be read, or that this package cannot build."""


class MissingTensorError(CheckpointError):
    """A tensor that the config needs and the files lack."""


class UnexpectedTensorError(CheckpointError):
    """A tensor that the config knows nothing of."""


class ShapeError(CheckpointError):
    """A tensor whose shape is not the config's."""


class DtypeError(CheckpointError):
    """A tensor stored in a number format that its place does not allow."""


class ScaleError(CheckpointError):
    """FP8 block scales that are absent, zero, negative or not finite, or FP8 codes that are not numbers."""


class DigestError(CheckpointError):
    """A file that differs from the manifest written with it, or a manifest that cannot be trusted."""


class SaveError(CheckpointError, OSError):
    """A checkpoint could not be written; what stood there before still stands."""


def clip(text: str, limit: int = 120) -> str:
    """Make a name safe to print: no control characters, never longer than `limit`."""
    head = text[:limit]
    shown = head if head.isprintable() else ascii(head)[1:-1]
    return shown if len(text) <= limit else f"{shown}... ({len(text)} characters)"
