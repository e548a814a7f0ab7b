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
        return _Experts.apply(x_ND, weight_NA, index_NA, up_EFD, down_EDF, up_scale, down_scale)  # type: ignore[return-value]
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
    ) -> Tensor:
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
        dx_ND, dup_EFD, ddown_EDF = torch.empty_like(x_ND), torch.empty_like(up_EFD), torch.empty_like(down_EDF)
        dweight_M = weight_NA.new_empty(weight_NA.numel())
        run_kernel(
            "experts_backward", ctx.kind, x_ND, weight_NA, up_EFD, up_EFD[0, double // 2 :], down_EDF,
            double * width, width * double // 2, counts_E, token_M, row_NA, gate_up_MF,
            grads[0].contiguous(), dx_ND, dweight_M, dup_EFD, dup_EFD[0, double // 2 :], ddown_EDF, *ctx.sizes,
        )  # fmt: skip
        return dx_ND, dweight_M[row_NA], None, dup_EFD, ddown_EDF, None, None
