"""Rewrite a checkpoint in another number format, streamed: BF16, FP32 or FP8 with block scales, from any of them.

    convert_checkpoint("DeepSeek-V3", "DeepSeek-V3-bf16", to="bf16")

A few million elements are in memory at a time, whatever the size of the checkpoint or of its largest tensor. Tensors
that already have the asked form are copied byte by byte, so FP8 to FP8 changes nothing.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.family import WRAPPED
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.fp8.quantize import block_scales, quantize_with_scales
from deepseek_v3.weights.checkpoint import Checkpoint
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.folder import atomic_folder, recover_folder
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.names import SCALE_SUFFIX, Slot, scale_name, scale_shape
from deepseek_v3.weights.opening import open_checkpoint
from deepseek_v3.weights.safetensors_file import DTYPES
from deepseek_v3.weights.save import METADATA, RELEASED_FP8
from deepseek_v3.weights.shards import Spec, plan_shards, write_shards
from deepseek_v3.weights.stored import CONFIG, FP8, block_rows, count_bytes, split_rows

ALIASES = {"torch_dtype": ("dtype",), "num_nextn_predict_layers": ("num_mtp_layers",)}
FORMATS = ("keep", "bf16", "fp32", "fp8")
# Data, not code, and nothing of it is interpreted here.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
)


def convert_checkpoint(
    source: str | PathLike,
    target: str | PathLike,
    *,
    to: str = "keep",
    mtp: bool = True,
    shard_bytes: int | None = None,
    skip_verify: bool = False,
    follow_links: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> None:
    """Check `source` and write it to `target` in the format `to`, with a manifest.

    Args:
        to: 'keep' each tensor's own format, 'bf16', 'fp32', or 'fp8' (what the released layout quantizes).
        mtp: also the MTP layers.
        advance: told the bytes of source data done since the last call, and their total.
    Raises:
        CheckpointError: whatever is wrong with the source; SaveError: the target cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"to={to!r} is not one of {', '.join(FORMATS)}")
    recover_folder(source)
    verify_manifest(source, skip=skip_verify)
    with open_checkpoint(source, mtp=mtp, follow_links=follow_links) as checkpoint:
        slots = checkpoint.check()
        checkpoint.check_numbers(slots)
        stream = _Stream(checkpoint, slots, to, advance)
        plan = plan_shards(stream.list_specs(), shard_bytes=shard_bytes)
        with atomic_folder(target, n_bytes=plan.total_size) as beside:
            write_config(checkpoint, stream.changed_keys(), beside)
            write_shards(plan, stream.pieces, beside, metadata=METADATA)
            for name in SIDE_FILES:
                if (Path(source) / name).is_file():
                    shutil.copyfile(Path(source) / name, beside / name)


def write_config(checkpoint: Checkpoint, changes: dict[str, Any], folder: Path) -> None:
    """Write the source's config.json with what changed; its bytes, if nothing did."""
    keys = dict(checkpoint.keys)
    if keys.get("model_type") in WRAPPED:  # the target holds the language model alone
        keys = checkpoint.config.to_dict()
    changes = {**changes, "num_nextn_predict_layers": checkpoint.config.num_nextn_predict_layers}
    for name, value in changes.items():
        key = next((alias for alias in ALIASES.get(name, ()) if alias in keys), name)
        if key in keys or value != getattr(checkpoint.config, name):
            keys[key] = value
    if keys.get("quantization_config", 0) is None and checkpoint.keys.get("quantization_config", 0) is not None:
        del keys["quantization_config"]
    if keys == checkpoint.keys:
        shutil.copyfile(checkpoint.folder / CONFIG, folder / CONFIG)
    else:
        text = json.dumps(dict(sorted(keys.items())), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


class _Stream:
    """The tensors of the target, made from the source piece by piece."""

    def __init__(self, checkpoint: Checkpoint, slots: list[Slot], to: str, advance: Callable[[int, int], None] | None):
        self.checkpoint, self.to, self.advance = checkpoint, to, advance
        self.slots = {slot.name: slot for slot in slots}
        self.total = count_bytes(checkpoint.entries)
        # Who reads `ue8m0` believes that scales are powers of two: new ones are such then.
        self.ue8m0 = (checkpoint.config.quantization_config or {}).get("scale_fmt") == "ue8m0"

    def stored_dtype(self, slot: Slot) -> torch.dtype:
        entry = self.checkpoint.entries[slot.name]
        if self.to == "keep" or (self.to == "fp8" and entry.dtype == FP8):
            return DTYPES[entry.dtype]
        if slot.fp32 or self.to == "fp32":
            return torch.float32
        return torch.float8_e4m3fn if self.to == "fp8" and slot.fp8 else torch.bfloat16

    def list_specs(self) -> list[Spec]:
        specs: list[Spec] = []
        for slot in self.slots.values():
            dtype = self.stored_dtype(slot)
            specs.append((slot.name, dtype, slot.shape))
            if dtype == torch.float8_e4m3fn:
                kept = self.checkpoint.entries.get(scale_name(slot.name))
                scale_dtype = torch.float32 if kept is None else DTYPES[kept.dtype]
                specs.append((scale_name(slot.name), scale_dtype, scale_shape(slot.shape)))
        return specs

    def changed_keys(self) -> dict[str, Any]:
        """What config.json must say of the target's formats, whatever the source's says."""
        fresh = any(self.is_fresh_fp8(slot) for slot in self.slots.values())
        kept = self.to in ("keep", "fp8") and any(self.checkpoint.is_fp8(slot) for slot in self.slots.values())
        quantization = self.checkpoint.config.quantization_config if kept else None
        if fresh or (kept and quantization is None):
            quantization = {**RELEASED_FP8, **({"scale_fmt": "ue8m0"} if self.ue8m0 else {})}
        dtypes = {self.stored_dtype(slot) for slot in self.slots.values() if not slot.fp32}
        wide = dtypes - {torch.float8_e4m3fn}
        name = str(wide.pop()).removeprefix("torch.") if len(wide) == 1 else self.checkpoint.config.torch_dtype
        return {"torch_dtype": name, "quantization_config": quantization}

    def is_fresh_fp8(self, slot: Slot) -> bool:
        """Whether this weight is brought into FP8 here."""
        return self.to == "fp8" and slot.fp8 and not self.checkpoint.is_fp8(slot)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the rows of one tensor of the target, in their order."""
        slot = self.slots[name.removesuffix(SCALE_SUFFIX)]
        entry = self.checkpoint.entries[slot.name]
        is_scale = name.endswith(SCALE_SUFFIX)
        dtype = self.stored_dtype(slot)
        for rows in split_rows(slot.shape):
            yield self._piece(slot, rows, dtype, is_scale)
            if not is_scale and self.advance is not None:
                self.advance(entry.n_bytes * len(range(*rows.indices(slot.shape[0]))) // slot.shape[0], self.total)
            self.checkpoint.release()

    def _piece(self, slot: Slot, rows: slice, dtype: torch.dtype, is_scale: bool) -> Tensor:
        stored = self.checkpoint.view(slot.name, rows)
        from_fp8, to_fp8 = stored.dtype == torch.float8_e4m3fn, dtype == torch.float8_e4m3fn
        if from_fp8 and (is_scale or not to_fp8):
            scale = self.checkpoint.view(scale_name(slot.name), block_rows(rows))
            return scale if is_scale else dequantize_weight(stored, scale.float(), dtype)
        if from_fp8 or not to_fp8:
            return stored.to(dtype)
        try:
            scale = block_scales(stored, ue8m0=self.ue8m0)
        except ValueError as error:
            file = self.checkpoint.files[slot.name]
            raise CheckpointError(str(error), file=file, tensor=slot.name) from None
        return scale if is_scale else quantize_with_scales(stored, scale)
