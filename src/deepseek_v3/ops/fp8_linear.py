"""Linear layers and SwiGLU networks whose three products are FP8, with their gradients: the straight-through rule.

    y = X^ W^^T        dX = dY^ W^        dW = dY'^T X'          ^ quantized along the sum, ' in turned tiles

Rounding counts as if it were not there when gradients are taken. Results leave in BF16 (in an FP32 tensor where
nothing asks for BF16), gradients of weights in FP32. What is kept for the backward pass is codes: see `fp8/recipe.py`
and `fp8/gating.py`.

Letters: N tokens, D width, F hidden width, I and O the two sides of a weight.
Source: arXiv:2412.19437, 3.3.1 and Fig. 6, 3.3.3.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_v3.fp8.gating import gate_backward, gate_forward
from deepseek_v3.fp8.products import multiply_tiles
from deepseek_v3.fp8.recipe import Recipe, keep_input, quantize_gradient, quantize_input, quantize_matrix
from deepseek_v3.fp8.tiles import COLUMNS, ROWS, SQUARES, Tiled, turn
from deepseek_v3.ops.checks import check_product, check_swiglu
from deepseek_v3.ops.choice import activation_dtype
from deepseek_v3.ops.deferral import Later, cut_off, find_later

BF16, FP32 = torch.bfloat16, torch.float32


def linear_in_fp8(x: Tensor, weight_OI: Tensor, recipe: Recipe, kept: Tiled | None = None) -> Tensor:
    """Multiply by a weight's transpose, [..., I] -> [..., O], all three products in FP8.

    Args:
        kept: the input as `recipe` keeps it for the backward pass, where somebody keeps it already.
    """
    check_product(x, weight_OI)
    x_NI = x.reshape(-1, x.shape[-1])
    codes = (None, None) if kept is None else kept[:2]
    later = find_later(x, weight_OI)
    weight = cut_off(later, weight_OI)
    y_NO: Tensor = _Linear.apply(x_NI, *weight, recipe, activation_dtype(x), later, *codes)  # type: ignore[assignment]
    return y_NO.view(*x.shape[:-1], -1)


def swiglu_in_fp8(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, recipe: Recipe) -> Tensor:
    """down(silu(gate x) * up x) for every row, all nine products in FP8."""
    check_swiglu(x, gate_FD, up_FD, down_DF)
    x_ND = x.reshape(-1, x.shape[-1])
    dtype = activation_dtype(x)
    later = find_later(x, gate_FD, up_FD, down_DF)
    weights = cut_off(later, gate_FD, up_FD, down_DF)
    y_ND: Tensor = _SwiGLU.apply(x_ND, *weights, recipe, dtype, later)  # type: ignore[assignment]
    return y_ND.view(x.shape)


class Network(NamedTuple):
    """The codes of a SwiGLU network's matrices."""

    gate: Tiled
    up: Tiled
    down: Tiled


def weight_gradient(dy: Tiled, x: Tiled, out: Tensor | None = None) -> Tensor:
    """Wgrad: both operands in tiles that lie along the tokens."""
    return multiply_tiles(dy.transposed(), x.transposed(), FP32, out)


def input_gradient(dy: Tiled, weight: Tiled) -> Tensor:
    """Dgrad: the weight's codes read the other way round."""
    return multiply_tiles(dy, weight.transposed(), BF16)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, recipe: Recipe, dtype: torch.dtype, later: Later | None,
        kept_code: Tensor | None, kept_scale: Tensor | None,
    ) -> Tensor:  # fmt: skip
        x, weight = quantize_input(x_NI, recipe), quantize_matrix(weight_OI, recipe)
        y_NO = multiply_tiles(x, weight, BF16)  # V3 Fig. 6
        if any(ctx.needs_input_grad):
            ctx.recipe, ctx.dtype, ctx.later = recipe, x_NI.dtype, later
            kept = (kept_code, kept_scale) if kept_code is not None else keep_input(x_NI, x, recipe)[:2]
            ctx.save_for_backward(*kept, *weight[:2])
        return y_NO.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_code, x_scale, weight_code, weight_scale = ctx.saved_tensors
        recipe, dx_NI, dweight_OI = ctx.recipe, None, None
        dy_row, dy_column = quantize_gradient(grads[0], recipe)
        if ctx.needs_input_grad[0]:
            dx_NI = input_gradient(dy_row, Tiled(weight_code, weight_scale, SQUARES)).to(ctx.dtype)

        def make_gradient() -> tuple[Tensor]:
            x_column = turn(Tiled(x_code, x_scale, ROWS), ue8m0=recipe.input_ue8m0)
            return (weight_gradient(dy_column, x_column),)

        if ctx.later is not None:
            ctx.later.put_off(make_gradient)
        elif ctx.needs_input_grad[1]:
            (dweight_OI,) = make_gradient()
        return dx_NI, dweight_OI, None, None, None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, recipe: Recipe, dtype: torch.dtype,
        later: Later | None,
    ) -> Tensor:  # fmt: skip
        x = quantize_input(x_ND, recipe)
        network = Network(*(quantize_matrix(weight, recipe) for weight in (gate_FD, up_FD, down_DF)))
        hidden, gate, up = gate_forward(
            multiply_tiles(x, network.gate, BF16), multiply_tiles(x, network.up, BF16), recipe
        )
        if any(ctx.needs_input_grad):
            ctx.recipe, ctx.dtype, ctx.later = recipe, x_ND.dtype, later
            ctx.save_for_backward(*(t for q in (x, gate, up, *network) for t in q[:2]))
        return multiply_tiles(hidden, network.down, BF16).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        recipe, saved = ctx.recipe, ctx.saved_tensors
        x, gate, up = (Tiled(saved[i], saved[i + 1], ROWS) for i in (0, 2, 4))
        network = Network(*(Tiled(saved[i], saved[i + 1], SQUARES) for i in (6, 8, 10)))
        dy_row, dy_column = quantize_gradient(grads[0], recipe)
        middle = gate_backward(gate, up, input_gradient(dy_row, network.down))
        dgate_row, dgate_column = quantize_gradient(middle.dgate_MF, recipe)
        dup_row, dup_column = quantize_gradient(middle.dup_MF, recipe)
        dx_ND = input_gradient(dgate_row, network.gate).float() + input_gradient(dup_row, network.up).float()
        hidden_MF = middle.hidden_MF

        def make_gradients() -> tuple[Tensor, ...]:
            x_column, hidden_column = turn(x, ue8m0=recipe.input_ue8m0), quantize_input(hidden_MF, recipe, COLUMNS)
            dgate_FD, dup_FD = weight_gradient(dgate_column, x_column), weight_gradient(dup_column, x_column)
            return dgate_FD, dup_FD, weight_gradient(dy_column, hidden_column)

        dweights: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.later is not None:
            ctx.later.put_off(make_gradients)
        else:
            dweights = make_gradients()
        return dx_ND.to(ctx.dtype), *dweights, None, None, None
