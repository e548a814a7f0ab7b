"""Weights that stay in memory as they are stored: E4M3 codes, with the scales of their 128 x 128 blocks beside them.

    linear.hold_fp8("weight")           linear.weight is codes now, linear.weight_scale_inv their scales; both unfilled
    linear.dequantized_weight("weight", dtype)        float32(code) * scale, rounded once: what a product computes with

Half the memory of BF16, and half of what a decoding step must read. A model's forward pass computes with the numbers
that loading into the activations' dtype would have given, to the last bit; the kernel of a decoding step, which sums in
FP32 anyway, with float32(code) * scale unrounded. For inference: codes have no gradient (activations do).

Letters: O rows (out), I columns (in).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from deepseek_v3.fp8.decode import dequantize_into
from deepseek_v3.fp8.exact import KeepsExact
from deepseek_v3.fp8.quantize import CODE, count_blocks, quantize_weight

SUFFIX = "_scale_inv"  # of the scales' name, as released


class HoldsFP8(KeepsExact):
    """A module with matrices that may be held in FP8: `name` with `name_scale_inv`, which is None where it is not.

    Attributes:
        matrices: their names, and of how many `parts` each consists.
    """

    matrices: ClassVar[Mapping[str, int]] = {"weight": 1}

    def hold_fp8(self, name: str, parts: int = 1) -> None:
        """Make room for codes and scales in place of the numbers of `name`, which are lost.

        Args:
            parts: matrices above each other, each with scales of its own: [E, parts, O / 128, I / 128].
        """
        weight: Tensor = getattr(self, name)
        *stack, rows, columns = weight.shape
        blocks = (count_blocks(rows // parts), count_blocks(columns))
        setattr(self, name, nn.Parameter(torch.empty_like(weight, dtype=CODE), requires_grad=False))
        lead = [*stack, parts] if parts > 1 else stack
        self.register_buffer(name + SUFFIX, torch.empty(*lead, *blocks, dtype=torch.float32, device=weight.device))

    def quantize_weights(self) -> None:
        """Hold every matrix in FP8 from now on, one after the other: what is needed beside it is one more copy of one.

        Raises:
            ValueError: NaN or infinity has no FP8 form.
        """
        for name, parts in self.matrices.items():
            if self.scales(name) is not None:
                continue
            weight: Tensor = getattr(self, name).detach()
            self.hold_fp8(name, parts)
            code, scale = getattr(self, name).detach(), self.scales(name)
            assert scale is not None
            rows, columns = weight.shape[-2] // parts, weight.shape[-1]
            blocks = scale.view(-1, *scale.shape[-2:])
            for one, codes, scales in zip(weight.view(-1, rows, columns), code.view(-1, rows, columns), blocks):
                made, scaled = quantize_weight(one)
                codes.copy_(made)
                scales.copy_(scaled)

    def scales(self, name: str) -> Tensor | None:
        """The block scales of `name`, if it is held in FP8."""
        return getattr(self, name + SUFFIX, None)

    def dequantized_weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """`name` itself, or its numbers in `dtype` if it is held in FP8."""
        return dequantize_held(getattr(self, name), self.scales(name), dtype)

    def exact(self) -> Iterable[Tensor]:
        """Codes and scales: cast, they would not be the numbers."""
        for name in self.matrices:
            scale = self.scales(name)
            if scale is not None:
                yield from (getattr(self, name), scale)


def dequantize_held(
    weight: Tensor, scale: Tensor | None, dtype: torch.dtype, only: Sequence[int] | None = None
) -> Tensor:
    """Decode a weight that is held in FP8 to `dtype`; one without scales is returned as it is.

    Args:
        scale: of a matrix [O / 128, I / 128], of a stack [E, O / 128, I / 128], of one with parts as in `hold_fp8`.
        only: of a stack, what is decoded; the rest is left unfilled, and its memory untouched.
    """
    if scale is None:
        return weight
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    if scale.dim() == 2:
        dequantize_into(weight, scale, out)
        return out
    for i in range(len(weight)) if only is None else only:
        blocks = scale[i].flatten(0, -3) if scale.dim() == 4 else scale[i].unsqueeze(0)
        parts = (len(blocks), -1, weight.shape[-1])
        for code_OI, scale_OI, out_OI in zip(weight[i].view(parts), blocks, out[i].view(parts)):
            dequantize_into(code_OI, scale_OI, out_OI)
    return out
