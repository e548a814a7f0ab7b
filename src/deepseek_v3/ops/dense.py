"""The products of a dense network: y = x W^T, and SwiGLU, down(silu(gate x) * up x).

Letters: N tokens, D width, F hidden width, I and O the two sides of a weight.
Source: arXiv:2002.05202 (SwiGLU).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.fp8.weight import dequantize_held
from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_product, check_scales, check_swiglu
from deepseek_v3.ops.choice import CODE, KINDS, activation_dtype, kernel_serves, refuse_fp8_gradient
from deepseek_v3.ops.deferral import Later, cut_off, find_later


def linear(x: Tensor, weight_OI: Tensor, scale: Tensor | None = None) -> Tensor:
    """Multiply by a weight's transpose, [..., I] -> [..., O]; of E4M3 codes with the scales of their blocks."""
    check_product(x, weight_OI, scale)
    later = find_later(x, weight_OI)
    if not kernel_serves(x, weight_OI):
        if later is not None:
            return _LaterLinear.apply(x, weight_OI.detach(), later)  # type: ignore[return-value]
        return F.linear(x, dequantize_held(weight_OI, scale, x.dtype))
    x_NI = x.to(activation_dtype(x)).reshape(-1, x.shape[-1]).contiguous()
    y_NO: Tensor = _Linear.apply(x_NI, *cut_off(later, weight_OI), scale, later)  # type: ignore[assignment]
    return y_NO.view(*x.shape[:-1], -1)


def swiglu(
    x: Tensor,
    gate_FD: Tensor,
    up_FD: Tensor,
    down_DF: Tensor,
    gate_scale: Tensor | None = None,
    up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """down(silu(gate x) * up x) for every row; scales belong to E4M3 codes."""
    check_swiglu(x, gate_FD, up_FD, down_DF)
    if not kernel_serves(x, gate_FD, up_FD, down_DF):
        return linear(F.silu(linear(x, gate_FD, gate_scale)) * linear(x, up_FD, up_scale), down_DF, down_scale)
    if gate_FD.dtype == CODE:
        for weight, scale in ((gate_FD, gate_scale), (up_FD, up_scale), (down_DF, down_scale)):
            check_scales(weight, scale)
    x_ND = x.to(activation_dtype(x)).reshape(-1, x.shape[-1]).contiguous()
    later = find_later(x, gate_FD, up_FD, down_DF)
    weights = cut_off(later, gate_FD, up_FD, down_DF)
    y_ND = _SwiGLU.apply(x_ND, *weights, later, gate_scale, up_scale, down_scale)
    return y_ND.view(x.shape)  # type: ignore[union-attr]


class _LaterLinear(torch.autograd.Function):
    """PyTorch's product, of whose backward pass the weight's part is put off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, later: Later) -> Tensor:
        ctx.later = later
        ctx.save_for_backward(x, weight_OI)
        return F.linear(x, weight_OI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x, weight_OI = ctx.saved_tensors
        dy = grads[0]  # in the dtype of the product, which under autocast is not that of x

        def make_gradient() -> tuple[Tensor]:
            x_NI = x.to(dy.dtype).reshape(-1, x.shape[-1])
            return ((dy.reshape(-1, dy.shape[-1]).mT @ x_NI).to(weight_OI.dtype),)

        ctx.later.put_off(make_gradient)
        return (dy @ weight_OI.to(dy.dtype)).to(x.dtype), None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, scale: Tensor | None, later: Later | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.later = later
        ctx.arguments = (KINDS[x_NI.dtype, weight_OI.dtype], x_NI.shape[0], *weight_OI.shape)
        kind, rows, out, width = ctx.arguments
        y_NO = x_NI.new_empty(rows, out)
        run_kernel("linear", kind, x_NI, weight_OI, scale, y_NO, rows, out, width, 1, torch.get_num_threads())
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_NI, weight_OI = ctx.saved_tensors
        kind, rows, out, width = ctx.arguments
        refuse_fp8_gradient(kind)
        dy_NO, dx_NI, dweight_OI = grads[0].contiguous(), None, None

        def make_gradient() -> tuple[Tensor]:
            made_OI = torch.empty_like(weight_OI)
            threads = torch.get_num_threads()
            run_kernel("linear_weight_gradient", kind, dy_NO, x_NI, made_OI, rows, out, width, threads)
            return (made_OI,)

        if ctx.needs_input_grad[0]:
            dx_NI = torch.empty_like(x_NI)
            run_kernel("linear", kind, dy_NO, weight_OI, None, dx_NI, rows, width, out, 0, torch.get_num_threads())
        if ctx.later is not None:
            ctx.later.put_off(make_gradient)
        elif ctx.needs_input_grad[1]:
            (dweight_OI,) = make_gradient()
        return dx_NI, dweight_OI, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_FD: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        later: Later | None,
        *scales: Tensor | None,
    ) -> Tensor:
        hidden, width = gate_FD.shape
        ctx.kind, ctx.sizes = KINDS[x_ND.dtype, gate_FD.dtype], (x_ND.shape[0], width, hidden, 1, 1)
        ctx.later = later
        gate_up_NF, out_ND = x_ND.new_empty(x_ND.shape[0], 2 * hidden), torch.empty_like(x_ND)
        counts_E = torch.tensor([x_ND.shape[0]])
        run_kernel(
            "experts_forward", ctx.kind, x_ND, None, gate_FD, up_FD, down_DF, *scales, 0, 0, counts_E, None, None,
            gate_up_NF, out_ND, *ctx.sizes, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x_ND, gate_FD, up_FD, down_DF, gate_up_NF, counts_E)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        refuse_fp8_gradient(ctx.kind)
        x_ND, *weights, gate_up_NF, counts_E = ctx.saved_tensors
        dy_ND, dx_ND, kind, sizes = grads[0].contiguous(), torch.empty_like(x_ND), ctx.kind, ctx.sizes
        kept_NF = None if ctx.later is None else x_ND.new_empty(sizes[0], 3 * sizes[2])
        dweights = [None] * 3 if ctx.later is not None else [torch.empty_like(t) for t in weights]
        run_kernel(
            "experts_backward", kind, x_ND, None, *weights, 0, 0, counts_E, None, None, gate_up_NF, dy_ND, dx_ND, None,
            *dweights, kept_NF, *sizes, torch.get_num_threads(),
        )  # fmt: skip

        def make_gradients() -> list[Tensor]:
            made = [torch.empty_like(t) for t in weights]
            run_kernel(
                "experts_weight_gradient", kind, x_ND, dy_ND, kept_NF, 0, 0, counts_E, None, *made, *sizes,
                torch.get_num_threads(),
            )  # fmt: skip
            return made

        if ctx.later is not None:
            ctx.later.put_off(make_gradients)
        return dx_ND, *dweights, None, None, None, None
