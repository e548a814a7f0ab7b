"""Rows sorted by expert, and one product for each run of equal expert, with their gradients by hand.

Each token's A copies are rows of a matrix sorted by expert, so that every expert reads and writes one contiguous slice.
The way there and back are two gathers by a permutation; their gradients are gathers too, hence deterministic.

Letters: N tokens, D width, A experts per token, M = N * A rows sorted by expert, I and O the two sides of a weight.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.ops.deferral import Later, cut_off, find_later


class ExpertPlan(NamedTuple):
    """Where every row goes: `token_M` the token of each sorted row, `row_NA` the sorted row of each token's copy."""

    token_M: Tensor
    row_NA: Tensor
    counts: list[int]


def sort_by_expert(index_NA: Tensor, experts: int) -> ExpertPlan:
    """Plan the rows: sorted by expert, within an expert by token."""
    flat = index_NA.flatten()
    order_M = flat.argsort(stable=True)
    row = torch.empty_like(order_M)
    row[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    counts = torch.bincount(flat, minlength=experts).tolist()
    return ExpertPlan(order_M // index_NA.shape[1], row.view_as(index_NA), counts)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, row_NA: Tensor) -> Tensor:
        ctx.save_for_backward(row_NA)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (row_NA,) = ctx.saved_tensors
        copies_NAD = grads[0].index_select(0, row_NA.flatten()).unflatten(0, row_NA.shape)
        return copies_NAD.sum(1), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, weight_NA: Tensor, token_M: Tensor, row_NA: Tensor) -> Tensor:
        copies_NAD = y_MD.index_select(0, row_NA.flatten()).unflatten(0, row_NA.shape)
        ctx.save_for_backward(copies_NAD, weight_NA, token_M, row_NA)
        return torch.bmm(weight_NA.to(y_MD.dtype).unsqueeze(1), copies_NAD).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        copies_NAD, weight_NA, token_M, row_NA = ctx.saved_tensors
        dout_ND = grads[0]
        dweight_NA = torch.bmm(copies_NAD, dout_ND.unsqueeze(2)).squeeze(2).to(weight_NA.dtype)
        weight_M = torch.empty(token_M.numel(), dtype=dout_ND.dtype, device=dout_ND.device)
        weight_M[row_NA.flatten()] = weight_NA.flatten().to(dout_ND.dtype)
        return dout_ND.index_select(0, token_M) * weight_M.unsqueeze(1), dweight_NA, None, None


class _GroupedLinear(torch.autograd.Function):
    """y[run of e] = x[run of e] @ weight[e].T, each run written in place; any dtype, empty runs included."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_EOI: Tensor, counts: list[int], later: Later | None) -> Tensor:
        ctx.counts, ctx.later = counts, later
        ctx.save_for_backward(x_MI, weight_EOI)
        y_MO = x_MI.new_empty(x_MI.shape[0], weight_EOI.shape[1])
        for start, stop, e in _runs(counts):
            torch.mm(x_MI[start:stop], weight_EOI[e].mT, out=y_MO[start:stop])
        return y_MO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_MI, weight_EOI = ctx.saved_tensors
        counts, dy_MO, dx_MI, dweight_EOI = ctx.counts, grads[0].contiguous(), None, None

        def make_gradient() -> tuple[Tensor]:
            made_EOI = torch.empty_like(weight_EOI) if min(counts) > 0 else torch.zeros_like(weight_EOI)
            for start, stop, e in _runs(counts):
                torch.mm(dy_MO[start:stop].mT, x_MI[start:stop], out=made_EOI[e])
            return (made_EOI,)

        if ctx.needs_input_grad[0]:
            dx_MI = torch.empty_like(x_MI)
            for start, stop, e in _runs(counts):
                torch.mm(dy_MO[start:stop], weight_EOI[e], out=dx_MI[start:stop])
        if ctx.later is not None:
            ctx.later.put_off(make_gradient)
        else:
            (dweight_EOI,) = make_gradient()
        return dx_MI, dweight_EOI, None, None


def _runs(counts: list[int]):
    start = 0
    for e, count in enumerate(counts):
        if count:
            yield start, start + count, e
            start += count


def dispatch_rows(x_ND: Tensor, plan: ExpertPlan) -> Tensor:
    """Copy each token to its experts' rows, [M, D]."""
    return _Dispatch.apply(x_ND, plan.token_M, plan.row_NA)  # type: ignore[return-value]


def combine_rows(y_MD: Tensor, weight_NA: Tensor, plan: ExpertPlan) -> Tensor:
    """Add up each token's rows by weight, [N, D]."""
    return _Combine.apply(y_MD, weight_NA, plan.token_M, plan.row_NA)  # type: ignore[return-value]


def run_experts_together(x_ND: Tensor, weight_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor, plan: ExpertPlan) -> Tensor:
    """Send each token through its SwiGLU experts, add them up by weight, [N, D]: each step for all experts at once."""
    gate_MF, up_MF = grouped_linear(dispatch_rows(x_ND, plan), up_EFD, plan).chunk(2, -1)
    return combine_rows(grouped_linear(F.silu(gate_MF) * up_MF, down_EDF, plan), weight_NA, plan)


def grouped_linear(x_MI: Tensor, weight_EOI: Tensor, plan: ExpertPlan) -> Tensor:
    """Multiply each expert's rows by its weight, [M, O]."""
    if torch.is_autocast_enabled(x_MI.device.type):
        dtype = torch.get_autocast_dtype(x_MI.device.type)
        x_MI, weight_EOI = x_MI.to(dtype), weight_EOI.to(dtype)
    if x_MI.is_cuda and x_MI.dtype == torch.bfloat16:  # one kernel for all experts
        ends_E = torch.tensor(plan.counts, device=x_MI.device).cumsum(0).to(torch.int32)
        return F.grouped_mm(x_MI, weight_EOI.mT, offs=ends_E)
    later = find_later(x_MI, weight_EOI)
    return _GroupedLinear.apply(x_MI, *cut_off(later, weight_EOI), plan.counts, later)  # type: ignore[return-value]
