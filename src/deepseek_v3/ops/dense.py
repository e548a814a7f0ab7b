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


def linear(x: Tensor, weight_OI: Tensor, scale: Tensor | None = None) -> Tensor:
    """Multiply by a weight's transpose, [..., I] -> [..., O]; of E4M3 codes with the scales of their blocks."""
    check_product(x, weight_OI, scale)
    if not kernel_serves(x, weight_OI):
        return F.linear(x, dequantize_held(weight_OI, scale, x.dtype))
    x_NI = x.to(activation_dtype(x)).reshape(-1, x.shape[-1]).contiguous()
    y_NO: Tensor = _Linear.apply(x_NI, weight_OI, scale)  # type: ignore[assignment]
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
    y_ND = _SwiGLU.apply(x_ND, gate_FD, up_FD, down_DF, gate_scale, up_scale, down_scale)
    return y_ND.view(x.shape)  # type: ignore[union-attr]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
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
        if ctx.needs_input_grad[0]:
            dx_NI = torch.empty_like(x_NI)
            run_kernel("linear", kind, dy_NO, weight_OI, None, dx_NI, rows, width, out, 0, torch.get_num_threads())
        if ctx.needs_input_grad[1]:
            dweight_OI = torch.empty_like(weight_OI)
            run_kernel(
                "linear_weight_gradient", kind, dy_NO, x_NI, dweight_OI, rows, out, width, torch.get_num_threads()
            )
        return dx_NI, dweight_OI, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, *scales: Tensor | None
    ) -> Tensor:
        hidden, width = gate_FD.shape
        ctx.kind, ctx.sizes = KINDS[x_ND.dtype, gate_FD.dtype], (x_ND.shape[0], width, hidden, 1, 1)
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
        x_ND, gate_FD, up_FD, down_DF, gate_up_NF, counts_E = ctx.saved_tensors
        dx, dgate, dup, ddown = (torch.empty_like(t) for t in (x_ND, gate_FD, up_FD, down_DF))
        run_kernel(
            "experts_backward", ctx.kind, x_ND, None, gate_FD, up_FD, down_DF, 0, 0, counts_E, None, None, gate_up_NF,
            grads[0].contiguous(), dx, None, dgate, dup, ddown, *ctx.sizes, torch.get_num_threads(),
        )  # fmt: skip
        return dx, dgate, dup, ddown, None, None, None
