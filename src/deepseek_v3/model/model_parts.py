"""What a decoding step reads of a model, and what must hold of it: parts as the config says, and numbers.

A kernel knows only the config's sizes; a part of another kind or shape is for the model itself to read or refuse.
"""

import torch
from torch import nn

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.model.transformer import DeepseekV3

Description = list[tuple[str, type, dict[str, torch.Size]]]


def describe_parts(model: DeepseekV3) -> Description:
    """Every module by name, its class, and the shapes of its own weights."""
    return [
        (name, type(module), {key: weight.shape for key, weight in module._parameters.items() if weight is not None})
        for name, module in model.named_modules()
        if name
    ]


_LAST: list[tuple[ModelConfig, Description]] = []  # every `generate` asks, mostly of the model that it asked of before


def promised_parts(config: ModelConfig) -> Description:
    """What `describe_parts` says of a model that is as its config says."""
    for known, description in tuple(_LAST):
        if known == config:
            return description
    with torch.device("meta"):
        description = describe_parts(DeepseekV3(config))
    _LAST[:] = [(config, description)]
    return description


def find_broken_weight(model: nn.Module) -> str | None:
    """Name the first weight or buffer that holds NaN or infinity."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype != CODE and not tensor.isfinite().all():
            return name
    return None


def refuse_broken_biases(model: nn.Module) -> None:
    """Refuse what no logit would show: a router whose biases are not finite chooses anything.

    Raises:
        FloatingPointError: the name of the bias.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias") and not buffer.is_meta and not buffer.isfinite().all():
            raise FloatingPointError(f"no expert can be chosen: {name} holds NaN or infinity")
