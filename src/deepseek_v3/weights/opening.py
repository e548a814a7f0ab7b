"""Open a checkpoint folder, whichever of the two forms it has: whole tensors, or the parts of many processes."""

from os import PathLike

from deepseek_v3.config import ModelConfig
from deepseek_v3.weights.checkpoint import Checkpoint
from deepseek_v3.weights.sharded import ShardedCheckpoint, is_sharded
from deepseek_v3.weights.stored import StoredTensors


def open_checkpoint(folder: str | PathLike, *, mtp: bool = True, follow_links: bool = False) -> Checkpoint:
    """Open a folder; both forms are read by the same names.

    Raises:
        CheckpointError: config, index or a header cannot be read.
    """
    kind = ShardedCheckpoint if is_sharded(folder) else Checkpoint
    return kind(folder, mtp=mtp, follow_links=follow_links)


def read_stored_config(folder: str | PathLike) -> ModelConfig:
    """Read the config of what a folder really holds: without MTP layers, where it counts some that are wholly absent.

    Raises:
        CheckpointError: config, index or a header cannot be read.
    """
    with open_checkpoint(folder) if is_sharded(folder) else StoredTensors(folder) as stored:
        return stored.config
