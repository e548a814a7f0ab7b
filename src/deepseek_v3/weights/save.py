"""Write a model as a released checkpoint: config.json, shards with an index, tokenizer.json, manifest; all or nothing.

save_model(model, "DIR")                                   as it is in memory (what is held in FP8 is decoded)
save_model(model, "DIR", dtype=torch.bfloat16)             as DeepSeek's BF16 conversions
save_model(model, "DIR", dtype=torch.bfloat16, fp8=True)   as released: E4M3 with 128 x 128 block scales
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_values import FP8_BLOCK
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.fp8.quantize import block_scales, quantize_with_scales
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.errors import CheckpointError
from deepseek_v3.weights.folder import atomic_folder
from deepseek_v3.weights.load import place_of, scale_place_of
from deepseek_v3.weights.names import SCALE_SUFFIX, Slot, iterate_slots, scale_name, scale_shape
from deepseek_v3.weights.shards import Spec, plan_shards, write_shards

RELEASED_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}
METADATA = {"format": "pt"}  # what `transformers` looks for


def save_model(
    model: DeepseekV3,
    folder: str | PathLike,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | None = None,
    fp8: bool = False,
    shard_bytes: int | None = None,
    extra: Callable[[Any], None] | None = None,
    extra_bytes: int = 0,
) -> None:
    """Replace `folder` by a checkpoint of this model, MTP layers included.

    Args:
        tokenizer: has `save(folder)`, which writes tokenizer.json.
        dtype: of the stored weights; None keeps the model's. The selection bias is always stored in FP32, and so is a
            router that is FP32 beside narrower weights.
        fp8: quantize the projections by 128 x 128 blocks, those that are held in FP8 are stored as they are; the rest
            is stored in `dtype`.
        shard_bytes: data bytes per file, 4 GB unless told.
        extra: writes further files into the folder (a run's training state) before it is swapped in.
        extra_bytes: what these take, asked for with the rest before the first byte.
    Raises:
        SaveError: no room, no permission, another writer; the folder is then as it was.
    """
    dtype = dtype or model.embed_tokens.weight.dtype
    state = model.state_dict()
    slots = {slot.name: slot for slot in iterate_held_slots(model, state)}
    plan = plan_shards(list_specs(list(slots.values()), dtype, fp8=fp8), shard_bytes=shard_bytes)

    def fetch(name: str) -> Tensor:
        slot = slots[name.removesuffix(SCALE_SUFFIX)]
        weight, scale = place_of(slot, state).detach(), scale_place_of(slot, state)
        if scale is not None and fp8:
            return scale if name.endswith(SCALE_SUFFIX) else weight
        if scale is not None:
            weight = dequantize_weight(weight, scale, dtype)
        return encode_tensor(weight, slot, name, dtype, fp8=fp8)

    with atomic_folder(folder, n_bytes=plan.total_size + extra_bytes) as beside:
        released_config(model.config, dtype, fp8=fp8).to_json(beside / "config.json")
        write_shards(plan, fetch, beside, metadata=METADATA)
        if tokenizer is not None:
            tokenizer.save(beside)
        if extra is not None:
            extra(beside)


def iterate_held_slots(model: DeepseekV3, state: dict[str, Tensor]) -> Iterator[Slot]:
    """Yield the slots of a model; a router that is FP32 in memory, beside narrower weights, is stored so."""
    narrow = model.embed_tokens.weight.dtype not in (torch.float32, torch.float64)
    for slot in iterate_slots(model.config):
        wide = narrow and slot.name.endswith("mlp.gate.weight") and state[slot.memory].dtype == torch.float32
        yield replace(slot, fp32=True) if wide else slot


def released_config(config: ModelConfig, dtype: torch.dtype, *, fp8: bool) -> ModelConfig:
    """The config.json that goes with weights stored so."""
    return config.replace(
        torch_dtype=str(dtype).removeprefix("torch."), quantization_config=RELEASED_FP8 if fp8 else None
    )


def list_specs(slots: list[Slot], dtype: torch.dtype, *, fp8: bool) -> list[Spec]:
    """Name, stored dtype and shape of everything that will be written, scales beside their weights."""
    if not dtype.is_floating_point or dtype.itemsize == 1:
        raise CheckpointError(f"dtype={dtype} is not a weight's format; use float32, bfloat16, float16 (and fp8=True)")
    specs: list[Spec] = []
    for slot in slots:
        quantized = fp8 and slot.fp8
        stored = torch.float32 if slot.fp32 else torch.float8_e4m3fn if quantized else dtype
        specs.append((slot.name, stored, slot.shape))
        if quantized:
            specs.append((scale_name(slot.name), torch.float32, scale_shape(slot.shape)))
    return specs


def encode_tensor(weight: Tensor, slot: Slot, name: str, dtype: torch.dtype, *, fp8: bool) -> Tensor:
    """Bring a weight into its stored form: the weight itself, its FP8 codes, or (by `name`) its block scales.

    Raises:
        CheckpointError: a weight that has no FP8 form.
    """
    if slot.fp32:
        return weight.float()
    if not (fp8 and slot.fp8):
        return weight.to(dtype)
    try:
        scale = block_scales(weight)
    except ValueError as error:
        raise CheckpointError(str(error), tensor=slot.name) from None
    return scale if name.endswith(SCALE_SUFFIX) else quantize_with_scales(weight, scale)
