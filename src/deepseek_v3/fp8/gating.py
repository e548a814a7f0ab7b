"""The middle of a SwiGLU network in FP8 training: h = silu(g) u between two products, forward and backward.

    forward    g, u in BF16 -> codes of h for the next product, codes of g and u to keep
    backward   h made again of the codes of g and u; dg = dh u silu'(g), du = dh silu(g)

So what is kept of the middle is two bytes a hidden number in place of six. PyTorch's operations take the sigmoid in
FP64 and round it, as chapter 05; the kernel's silu is right to four units in the last place.

Letters: M rows, F hidden width.
Source: arXiv:2412.19437, 3.3.3 ("we cache the inputs of the SwiGLU operator and recompute its output").
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.fp8.quantize import TINIEST_AMAX, count_blocks
from deepseek_v3.fp8.recipe import PLAIN, Recipe, quantize_input
from deepseek_v3.fp8.tiles import E4M3, ROWS, Tiled, dequantize, kernels_serve, quantize
from deepseek_v3.native.build import run_kernel


class MiddleGradients(NamedTuple):
    """FP32 [M, F]: h, and the gradients of g and u, all times the row's weight; and the gradient of that weight [M]."""

    hidden_MF: Tensor
    dgate_MF: Tensor
    dup_MF: Tensor
    dweight_M: Tensor


def gate_forward(gate_MF: Tensor, up_MF: Tensor, recipe: Recipe = PLAIN) -> tuple[Tiled, Tiled, Tiled]:
    """Codes of h = silu(g) u for the product that follows, of g and of u, in tiles of 1 x 128."""
    if not kernels_serve(gate_MF) or gate_MF.dtype != torch.bfloat16 or not recipe.kernel_quantizes():
        hidden_MF = gate_MF.float() * _sigmoid(gate_MF) * up_MF.float()
        return quantize_input(hidden_MF, recipe.inner()), quantize(gate_MF), quantize(up_MF)
    rows, width = gate_MF.shape
    codes = [torch.empty(rows, width, dtype=E4M3.dtype) for _ in range(3)]
    scales = [torch.empty(rows, count_blocks(width)) for _ in range(3)]
    pairs = [tensor for pair in zip(codes, scales) for tensor in pair]
    run_kernel(
        "fp8_swiglu_forward", gate_MF.contiguous(), up_MF.contiguous(), *pairs, rows, width, TINIEST_AMAX, 0,
        torch.get_num_threads(),
    )  # fmt: skip
    hidden, gate, up = (Tiled(code, scale, ROWS) for code, scale in zip(codes, scales))
    return hidden, gate, up


def gate_backward(gate: Tiled, up: Tiled, dhidden_MF: Tensor, weight_M: Tensor | None = None) -> MiddleGradients:
    """Make h again, and the gradients of g and u from that of h.

    Args:
        dhidden_MF: BF16 (or FP32 that holds it), for rows of weight 1.
        weight_M: FP32, what each row's output counts.
    """
    if not kernels_serve(dhidden_MF) or dhidden_MF.dtype != torch.bfloat16:
        return _gate_backward(dequantize(gate), dequantize(up), dhidden_MF.float(), weight_M)
    rows, width = dhidden_MF.shape
    hidden_MF, dgate_MF, dup_MF = torch.empty(3, rows, width).unbind()
    dweight_M = torch.empty(rows)
    run_kernel(
        "fp8_swiglu_backward", gate.code, gate.scale, up.code, up.scale, dhidden_MF.contiguous(), weight_M, hidden_MF,
        dgate_MF, dup_MF, dweight_M, rows, width, torch.get_num_threads(),
    )  # fmt: skip
    return MiddleGradients(hidden_MF, dgate_MF, dup_MF, dweight_M)


def _gate_backward(gate_MF: Tensor, up_MF: Tensor, dhidden_MF: Tensor, weight_M: Tensor | None) -> MiddleGradients:
    sigmoid_MF = _sigmoid(gate_MF)
    hidden_MF = gate_MF * sigmoid_MF * up_MF
    dweight_M = (dhidden_MF * hidden_MF).sum(1)
    if weight_M is not None:
        hidden_MF, dhidden_MF = hidden_MF * weight_M[:, None], dhidden_MF * weight_M[:, None]
    dsilu_MF = sigmoid_MF * (1 + gate_MF * (1 - sigmoid_MF))
    return MiddleGradients(hidden_MF, dhidden_MF * up_MF * dsilu_MF, dhidden_MF * gate_MF * sigmoid_MF, dweight_M)


def _sigmoid(x: Tensor) -> Tensor:
    """In FP64, rounded to FP32: the same number wherever it is computed."""
    return x.double().sigmoid().float()
