"""The routed experts: every token through those it was sent to, added up by weight. No token is dropped.

    y = sum_{i chosen} w_i down_i(silu(gate_i x) * up_i x)

Letters: N tokens, D width, E experts, A experts per token, F hidden width, M = N * A rows sorted by expert.
Source: arXiv:2412.19437, Eq. (12); arXiv:2401.06066.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_v3.fp8.weight import dequantize_held
from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_experts, check_scales
from deepseek_v3.ops.choice import CODE, KINDS, activation_dtype, kernel_serves, refuse_fp8_gradient
from deepseek_v3.ops.deferral import Later, cut_off, find_later
from deepseek_v3.ops.grouped import run_experts_together, sort_by_expert


def run_experts(
    x_ND: Tensor,
    weight_NA: Tensor,
    index_NA: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """Send each token through its SwiGLU experts and add them up by weight, [N, D].

    Args:
        weight_NA, index_NA: of each token's experts.
        up_EFD, down_EDF: the experts, stacked, gate above up.
        up_scale, down_scale: of E4M3 codes, [E, 2, F / 128, D / 128] and [E, D / 128, F / 128].
    """
    check_experts(x_ND, weight_NA, index_NA, up_EFD, down_EDF)
    for stack, scale, parts in ((up_EFD, up_scale, 2), (down_EDF, down_scale, 1)):
        if stack.dtype == CODE:
            check_scales(stack, scale, parts)
    needs_more = up_scale is not None and weight_NA.requires_grad  # a gradient, which the kernel has not for FP8
    if kernel_serves(x_ND, up_EFD, down_EDF) and not needs_more:
        x_ND = x_ND.to(activation_dtype(x_ND)).contiguous()
        later = find_later(x_ND, up_EFD, down_EDF)
        experts = cut_off(later, up_EFD, down_EDF)
        return _Experts.apply(x_ND, weight_NA, index_NA, *experts, up_scale, down_scale, later)  # type: ignore[return-value]
    plan = sort_by_expert(index_NA, up_EFD.shape[0])
    chosen = [e for e, count in enumerate(plan.counts) if count]
    up_EFD = dequantize_held(up_EFD, up_scale, x_ND.dtype, chosen)
    down_EDF = dequantize_held(down_EDF, down_scale, x_ND.dtype, chosen)
    return run_experts_together(x_ND, weight_NA, up_EFD, down_EDF, plan)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_NA: Tensor,
        index_NA: Tensor,
        up_EFD: Tensor,
        down_EDF: Tensor,
        up_scale: Tensor | None,
        down_scale: Tensor | None,
        later: Later | None,
    ) -> Tensor:
        ctx.later = later
        experts, double, width = up_EFD.shape
        index_NA, weight_NA = index_NA.contiguous(), weight_NA.float().contiguous()
        token_M, row_NA = index_NA.new_empty(index_NA.numel()), torch.empty_like(index_NA)
        counts_E = index_NA.new_empty(experts)
        rows, per_token = index_NA.numel(), index_NA.shape[1]
        run_kernel("sort_by_expert", index_NA, token_M, row_NA, counts_E, rows, experts, per_token)
        gate_up_MF, out_ND = x_ND.new_empty(rows, double), torch.empty_like(x_ND)
        ctx.kind = KINDS[x_ND.dtype, up_EFD.dtype]
        ctx.sizes = (x_ND.shape[0], width, double // 2, experts, per_token, torch.get_num_threads())
        ctx.save_for_backward(x_ND, weight_NA, up_EFD, down_EDF, gate_up_MF, token_M, row_NA, counts_E)
        run_kernel(
            "experts_forward", ctx.kind, x_ND, weight_NA, up_EFD, up_EFD[0, double // 2 :], down_EDF,
            up_scale, None if up_scale is None else up_scale[0, 1], down_scale,
            double * width, width * double // 2, counts_E, token_M, row_NA, gate_up_MF, out_ND, *ctx.sizes,
        )  # fmt: skip
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        refuse_fp8_gradient(ctx.kind)
        x_ND, weight_NA, up_EFD, down_EDF, gate_up_MF, token_M, row_NA, counts_E = ctx.saved_tensors
        double, width = up_EFD.shape[1:]
        kind, sizes, dy_ND, later = ctx.kind, ctx.sizes, grads[0].contiguous(), ctx.later
        strides = double * width, width * double // 2
        dx_ND, dweight_M = torch.empty_like(x_ND), weight_NA.new_empty(weight_NA.numel())
        kept_MF = None if later is None else gate_up_MF.new_empty(len(gate_up_MF), 3 * double // 2)
        dups, ddown_EDF = _empty_gradients(up_EFD, down_EDF) if later is None else ((None, None), None)
        run_kernel(
            "experts_backward", kind, x_ND, weight_NA, up_EFD, up_EFD[0, double // 2 :], down_EDF, *strides, counts_E,
            token_M, row_NA, gate_up_MF, dy_ND, dx_ND, dweight_M, *dups, ddown_EDF, kept_MF, *sizes,
        )  # fmt: skip

        def make_gradients() -> tuple[Tensor, Tensor]:
            dups, ddown_EDF = _empty_gradients(up_EFD, down_EDF)
            run_kernel(
                "experts_weight_gradient", kind, x_ND, dy_ND, kept_MF, *strides, counts_E, token_M, *dups, ddown_EDF,
                *sizes,
            )  # fmt: skip
            return dups[0], ddown_EDF

        if later is not None:
            later.put_off(make_gradients)
        return dx_ND, dweight_M[row_NA], None, dups[0], ddown_EDF, None, None, None


def _empty_gradients(up_EFD: Tensor, down_EDF: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Room for those of gate and up, whole and from where up begins; and for those of down."""
    dup_EFD = torch.empty_like(up_EFD)
    return (dup_EFD, dup_EFD[0, up_EFD.shape[1] // 2 :]), torch.empty_like(down_EDF)
