"""What a decoding step reads of a model, and what must hold of it: shapes as the config says, and numbers.

A kernel knows only the config's sizes; a part of another shape is for the model itself to read or refuse.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.model.block import Block
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.model.norm import RMSNorm
from deepseek_v3.model.transformer import DeepseekV3


class ModelParts(NamedTuple):
    """What a step reads of a model."""

    config: ModelConfig
    embed_tokens: nn.Embedding
    layers: list[Block]
    norm: RMSNorm
    lm_head: nn.Linear
    modules: list[MultiTokenPredictor]
    frequency_R: Tensor
    rope_magnitude: float

    @classmethod
    def of(cls, model: DeepseekV3) -> "ModelParts":
        """Name the parts of a model."""
        layers: list[Block] = list(model.layers)  # type: ignore[assignment]
        modules: list[MultiTokenPredictor] = list(model.mtp)  # type: ignore[assignment]
        place = model.frequency_R, model.rope_magnitude
        return cls(model.config, model.embed_tokens, layers, model.norm, model.lm_head, modules, *place)


def shapes_of(parts: ModelParts) -> list[dict[str, torch.Size]]:
    """The shape of every weight, part by part."""
    modules = [parts.embed_tokens, parts.norm, parts.lm_head, *parts.layers, *parts.modules]
    return [{name: weight.shape for name, weight in module.named_parameters()} for module in modules]


def refuse_what_is_not_finite(parts: ModelParts) -> None:
    """Name the weight that holds NaN or infinity, once hidden states do."""
    modules = {"embed_tokens": parts.embed_tokens, "norm": parts.norm, "lm_head": parts.lm_head}
    modules |= {f"layers.{i}": layer for i, layer in enumerate(parts.layers)}
    modules |= {f"mtp.{i}": module for i, module in enumerate(parts.modules)}
    for prefix, module in modules.items():
        for name, tensor in [*module.named_parameters(prefix), *module.named_buffers(prefix)]:
            if tensor.dtype != CODE and not tensor.isfinite().all():
                raise FloatingPointError(f"decoding gives no numbers: {name} holds NaN or infinity")
    raise FloatingPointError("decoding gives no numbers, though every weight is finite: a value grew beyond FP32")
