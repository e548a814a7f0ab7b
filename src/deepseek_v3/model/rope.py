"""Rotary position embedding on interleaved pairs, with YaRN.

    (x_2i, x_2i+1)  <-  turn by the angle  p * theta_i,     theta_i = base^(-2i / R)

The released weights are laid out for interleaved pairs (2i, 2i+1). YaRN slows the pairs that turn less than `beta_slow`
times within the trained length by `factor`, leaves those that turn more than `beta_fast` times, blends in between, and
sharpens the softmax of the whole score by mscale^2.

Letters: B batch, S positions, H heads, R rotary width.
Source: arXiv:2104.09864; arXiv:2309.00071; arXiv:2412.19437, section 4.3.
"""

import math

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.ops.rotation import Rotation


def mscale(factor: float, weight: float) -> float:
    """YaRN's magnitude: 0.1 * weight * ln(factor) + 1, or 1 without extension."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of every pair, FP64 [R/2] on the CPU, interpolated by YaRN where the config says so."""
    width = config.qk_rope_head_dim
    plain = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    scaling = config.rope_scaling
    if scaling is None:
        return plain

    def pair_that_turns(rotations: float) -> float:
        """The (fractional) pair that makes this many rotations over the trained length."""
        length = scaling["original_max_position_embeddings"]
        return width * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_that_turns(scaling.get("beta_fast") or 32), pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):  # to whole pairs
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(width // 2, dtype=torch.float64, device="cpu") - low) / span).clamp(0, 1)
    return plain / scaling["factor"] * ramp + plain * (1 - ramp)


def rotation_magnitude(config: ModelConfig) -> float:
    """What multiplies cos and sin under YaRN: 1.0 for every released model, whose two mscales are equal."""
    scaling = config.rope_scaling
    if scaling is None:
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["factor"], scaling["mscale"]) / mscale(scaling["factor"], scaling["mscale_all_dim"])
    return mscale(scaling["factor"], 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """The one scale of the joint score: (K + R)^-1/2, times mscale^2 under YaRN."""
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    if scaling is not None and scaling.get("mscale_all_dim"):
        scale *= mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def rotation_at(position_S: Tensor, frequency_R: Tensor, magnitude: float = 1.0) -> Rotation:
    """Compute cosine and sine at integer positions [S] or [B, S]; FP64 frequencies keep long positions exact."""
    angle = position_S.to(frequency_R.dtype)[..., None] * frequency_R.to(position_S.device)
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return Rotation((angle.cos() * magnitude).to(dtype), (angle.sin() * magnitude).to(dtype))
