"""Checkpoints of a run: each a Hugging Face directory with the state of the training beside the weights.

    RUN/checkpoints/step-00000500/   config.json  model.safetensors  tokenizer.json  manifest.json
                                     training_state.safetensors     moments, averaged weights, random state
                                     training_state.json            step, data cursor, counters

A folder is written beside, flushed to disk and renamed: a checkpoint that is there is whole. Many processes write
another form, each its parts (sharded_state.py); both are read here.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.folder import recover_folder
from deepseek_v3.weights.load import load_weights
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.save import save_model
from deepseek_v3.weights.sharded import is_sharded, read_further
from deepseek_v3.weights.shards import read_tensors, write_tensors

STATE = "training_state"
NAME = re.compile(r"step-(\d{8})")
LEFTOVER = re.compile(r"\.(step-\d{8})\.(saving|old|lock)")


class ResumeError(ValueError):
    """There is nothing to go on from, or it does not fit; the message names the mend."""


def checkpoint_folder(run: str | Path, step: int) -> Path:
    """Return where the checkpoint of a step belongs."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run: str | Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first; what a kill left beside them is cleared or finished."""
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return []
    for name in {match[1] for path in folder.iterdir() if (match := LEFTOVER.fullmatch(path.name))}:
        recover_folder(folder / name)
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / f"{STATE}.json").is_file())


def write_checkpoint(
    run: str | Path,
    step: int,
    model: DeepseekV3,
    tokenizer: Tokenizer | None,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write one checkpoint and delete all but the newest `keep`.

    Args:
        tensors, state: whatever going on needs besides the model; `state` as JSON can hold it.
    Raises:
        SaveError: no room or no permission; every older checkpoint still stands.
    """
    target = checkpoint_folder(run, step)

    def write_state(folder: Path) -> None:
        write_tensors(tensors, folder, stem=STATE)
        (folder / f"{STATE}.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    n_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    save_model(model, target, tokenizer, extra=write_state, extra_bytes=n_bytes)
    drop_old(target, keep)
    return target


def drop_old(newest: Path, keep: int) -> None:
    """Delete all checkpoints of the run but the newest `keep`."""
    for old in list_checkpoints(newest.parent.parent)[:-keep]:
        if old != newest:
            remove_checkpoint(old)


def read_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Verify a checkpoint and return its tensors and state.

    Raises:
        CheckpointError: damaged; ResumeError: weights without the state of a training.
    """
    check_state(folder)
    verify_manifest(folder)
    state = json.loads((folder / f"{STATE}.json").read_text(encoding="utf-8"))
    return read_further(folder) if is_sharded(folder) else read_tensors(folder, stem=STATE), state


def check_state(folder: Path) -> None:
    """Refuse weights alone.

    Raises:
        ResumeError: they are without the state of a training.
    """
    if not (folder / f"{STATE}.json").is_file():
        raise ResumeError(
            f"{folder} holds weights but no training state; start a run from it with --init-from {folder}"
        )


def read_checkpoint(model: DeepseekV3, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights into the model and return the training state; nothing changes if anything is refused.

    Raises:
        CheckpointError: damaged, or of another config; ResumeError: weights without the state of a training.
    """
    tensors, state = read_training_state(folder)
    load_weights(model, folder, skip_verify=False)
    return tensors, state


def newest_checkpoint(run: str | Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
        ResumeError: there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise ResumeError(f"{run} holds no checkpoint to go on from; nothing was saved in it yet")
    return found[-1]


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint so that a kill half-way does not leave a broken one that looks whole."""
    dying = folder.with_name(f".{folder.name}.old")
    folder.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)
