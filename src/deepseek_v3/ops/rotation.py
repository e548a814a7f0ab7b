"""The rotation of interleaved pairs, with its gradient: the rotation back.

    (x_2i, x_2i+1)  <-  turn by the angle  p * theta_i

Letters: B batch, S positions, H heads, R rotary width.
Source: arXiv:2104.09864.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every position and pair, FP32 [S, R/2] or [B, S, R/2]."""

    cos: Tensor
    sin: Tensor


def rotate_pairs(x_BSHR: Tensor, rotation: Rotation) -> Tensor:
    """Turn every interleaved pair by its position's angle; in FP32 (or FP64), returned in the input's dtype.

    A pair is a complex number, and turning it is one multiplication by e^{i p theta}.

    Args:
        x_BSHR: [..., S, H, R]; a key without head axis is given one of size 1.
    """
    return _RotatePairs.apply(x_BSHR, rotation.cos, rotation.sin)  # type: ignore[return-value]


def _turn(x_BSHR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x_BSHR.to(torch.promote_types(x_BSHR.dtype, torch.float32)).contiguous()
    if wide.storage_offset() % 2:  # a slice behind an odd latent width: no complex view can begin there
        wide = wide.clone()
    turn = torch.complex(cos, sin).unsqueeze(-2)  # one angle for all heads
    return torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turn).flatten(-2).to(x_BSHR.dtype)


class _RotatePairs(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BSHR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BSHR, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None
