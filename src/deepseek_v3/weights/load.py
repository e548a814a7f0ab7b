"""Build a model from a checkpoint folder: released (BF16 or FP8), or written by this package (the same form).

    model, tokenizer = load_model("DIR", tokenizer_from=Tokenizer.from_file)

Everything that can be refused is refused before the first weight of a model changes.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.checkpoint import Checkpoint, read_config
from deepseek_v3.weights.errors import CheckpointError, ConfigFileError
from deepseek_v3.weights.folder import recover_folder
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.names import Slot

TOKENIZER = "tokenizer.json"


def load_model(
    folder: str | PathLike,
    *,
    skip_verify: bool = False,
    dtype: torch.dtype | None = None,
    mtp: bool = True,
    follow_links: bool = False,
    tokenizer_from: Callable[[Path], Any] | None = None,
) -> tuple[DeepseekV3, Any]:
    """Read a folder into a new model.

    Args:
        skip_verify: do not hold the files against their SHA-256 manifest (logged).
        dtype: of the weights; None keeps the config's `torch_dtype`. The selection bias stays FP32.
        mtp: also the multi-token prediction layers; False reads a checkpoint that lost them.
        follow_links: accept shards that are links out of the folder, as in a download cache.
        tokenizer_from: builds the tokenizer from its file, if there is one.
    Returns:
        the model in eval mode, and the tokenizer; without `tokenizer_from` the path of its file; None if there is none.
    Raises:
        CheckpointError: of the subclass that says what is wrong, where, and what to do.
    """
    if dtype is not None and (not dtype.is_floating_point or dtype.itemsize == 1):
        raise CheckpointError(f"dtype={dtype} is not a format to compute in; use float32, bfloat16 or float64")
    recover_folder(folder)
    verify_manifest(folder, skip=skip_verify)
    with Checkpoint(folder, mtp=mtp, follow_links=follow_links) as checkpoint:
        slots = checkpoint.check()
        checkpoint.check_numbers(slots)
        if dtype is None:
            dtype = getattr(torch, checkpoint.config.torch_dtype)
        assert dtype is not None
        config = checkpoint.config.replace(quantization_config=None, torch_dtype=str(dtype).removeprefix("torch."))
        model = build_empty(config, dtype)
        fill_model(model, checkpoint, slots)
    path = Path(folder) / TOKENIZER
    tokenizer = None if not path.exists() else path if tokenizer_from is None else tokenizer_from(path)
    return model.eval(), tokenizer


def load_weights(
    model: DeepseekV3, folder: str | PathLike, *, skip_verify: bool = False, follow_links: bool = False
) -> None:
    """Read a folder into a model that exists; it is unchanged if anything is refused.

    Raises:
        CheckpointError: also when the folder's config builds another model than this one.
    """
    recover_folder(folder)
    verify_manifest(folder, skip=skip_verify)
    found = read_config(folder)
    if difference := first_difference(found, model.config):
        raise ConfigFileError(f"{difference}; build the model from this config", file=Path(folder) / "config.json")
    with Checkpoint(folder, follow_links=follow_links) as checkpoint:
        slots = checkpoint.check()
        checkpoint.check_numbers(slots)
        fill_model(model, checkpoint, slots)


def first_difference(found: ModelConfig, wanted: ModelConfig) -> str:
    """Name the first key in which two configs build different tensors, or return an empty string."""
    free = ("torch_dtype", "quantization_config", "initializer_range", "max_position_embeddings")
    theirs, ours = found.to_dict(), wanted.to_dict()
    for key in sorted(theirs.keys() & ours.keys() - set(free)):
        if theirs[key] != ours[key]:
            return f"{key} is {theirs[key]!r}, the model has {ours[key]!r}"
    return ""


def build_empty(config: ModelConfig, dtype: torch.dtype) -> DeepseekV3:
    """Allocate a model without drawing its weights."""
    with torch.device("meta"):
        model = DeepseekV3(config)
    model = model.to(dtype).to_empty(device="cpu")
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # allocating parted them
    return model


@torch.no_grad()
def fill_model(model: DeepseekV3, checkpoint: Checkpoint, slots: list[Slot]) -> None:
    """Copy every checked tensor to its place in memory, shard by shard, dequantising on the way."""
    state = model.state_dict()
    for slot in sorted(slots, key=lambda slot: checkpoint.files[slot.name]):
        if not slot.copy:
            place = place_of(slot, state)
            place.copy_(checkpoint.weight(slot.name, place.dtype))
    checkpoint.release()


def place_of(slot: Slot, state: dict[str, Tensor]) -> Tensor:
    """The piece of our memory that a released tensor is."""
    memory = state[slot.memory]
    if slot.expert is not None:
        memory = memory[slot.expert]
    return memory if slot.rows is None else memory[slot.rows[0] : slot.rows[1]]
