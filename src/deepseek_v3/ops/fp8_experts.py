"""The routed experts of FP8 training: what is sent to them is FP8 in both directions, what comes back BF16.

    forward    x quantized once, its codes sent to the experts of each token;  y = sum_a w_a y_a
    backward   dy quantized once, its codes sent alike;  dx = sum_a dx_a;  dw_a = <W_down^T dy, h>

The scales of both are powers of two, so that tiles turn over without a second rounding. A row's weight w meets h and
the gradient of h, not dy, which is the same for all experts of a token. Gate and up are two matrices: a block of 128
rows never holds rows of both. An expert that no token was sent to has a gradient of zeros.

The experts may live in other processes (`Delivery`): then these codes are what travels, and the numbers are the same.

Letters: N tokens, D width, E experts here, A experts per token, F hidden width, M = N * A rows sorted by expert, and
the rows that arrive here, as many as those if all experts are here.
Source: arXiv:2412.19437, Eq. (12), 3.3.3.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_v3.fp8.gating import gate_backward, gate_forward
from deepseek_v3.fp8.products import multiply_sorted, multiply_tiles
from deepseek_v3.fp8.quantize import count_blocks
from deepseek_v3.fp8.recipe import Recipe, quantize_gradient, quantize_input, quantize_matrix
from deepseek_v3.fp8.tiles import COLUMNS, E4M3, GRADIENT_FLOOR, ROWS, SQUARES, Tiled, quantize, turn
from deepseek_v3.ops.checks import check_experts
from deepseek_v3.ops.choice import activation_dtype
from deepseek_v3.ops.deferral import Later, cut_off, find_later
from deepseek_v3.ops.fp8_linear import BF16, input_gradient, weight_gradient
from deepseek_v3.ops.grouped import sort_by_expert

Rows = Callable[[Tensor], Tensor]


class Route(NamedTuple):
    """How many rows each expert here has; and how rows of bytes get to their experts, and back.

    Attributes:
        post: what is sent, in the order of all experts, to what arrives. None: all experts are here.
        fetch: the way back.
    """

    counts: tuple[int, ...]
    post: Rows | None = None
    fetch: Rows | None = None


class Delivery(NamedTuple):
    """Which rows go where: `token_M` the token of each row sent, `row_NA` the row of each token's copy.

    Attributes:
        index_M: of the rows that arrive, in the order of the experts here.
    """

    token_M: Tensor
    row_NA: Tensor
    index_M: Tensor
    route: Route


def experts_in_fp8(
    x_ND: Tensor,
    weight_NA: Tensor,
    index_NA: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    recipe: Recipe,
    delivery: Delivery | None = None,
) -> Tensor:
    """Send each token through its SwiGLU experts and add them up by weight, [N, D], all products in FP8.

    Args:
        weight_NA, index_NA: of each token's experts.
        up_EFD, down_EDF: the experts that are here, stacked, gate above up.
        delivery: where experts live in other processes too; for recipes as reported.
    """
    # of experts elsewhere, their place there
    check_experts(x_ND, weight_NA, index_NA if delivery is None else index_NA % len(up_EFD), up_EFD, down_EDF)
    if delivery is None:
        plan = sort_by_expert(index_NA, up_EFD.shape[0])
        delivery = Delivery(plan.token_M, plan.row_NA, plan.token_M, Route(tuple(plan.counts)))
    later = find_later(x_ND, up_EFD, down_EDF)
    experts = cut_off(later, up_EFD, down_EDF)
    y_ND: Tensor = _Experts.apply(  # type: ignore[assignment]
        x_ND, weight_NA, *delivery[:3], *experts, delivery.route, recipe, activation_dtype(x_ND), later
    )
    return y_ND


class Run(NamedTuple):
    """Rows [start, stop) of one expert."""

    expert: int
    start: int
    stop: int


def runs_of(counts: tuple[int, ...]) -> Iterator[Run]:
    """The experts that have rows."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield Run(expert, start, start + count)
        start += count


def add_copies(y_MD: Tensor, row_NA: Tensor, weight_NA: Tensor | None) -> Tensor:
    """Add up the rows of each token, by weight if there is one: FP32 sums, in the order of the copies."""
    out_ND = torch.zeros(row_NA.shape[0], y_MD.shape[1], device=y_MD.device)
    for a in range(row_NA.shape[1]):
        copy_ND = y_MD.index_select(0, row_NA[:, a]).float()
        out_ND += copy_ND if weight_NA is None else copy_ND * weight_NA[:, a, None]
    return out_ND


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_NA: Tensor,
        token_M: Tensor,
        row_NA: Tensor,
        index_M: Tensor,
        up_EFD: Tensor,
        down_EDF: Tensor,
        route: Route,
        recipe: Recipe,
        dtype: torch.dtype,
        later: Later | None,
    ) -> Tensor:
        hidden_width, rows, counts = up_EFD.shape[1] // 2, index_M.numel(), route.counts
        x = quantize_input(x_ND, recipe)
        if route.post is not None:
            x = unpack_codes(route.post(pack_codes(x.picked(token_M))), x_ND.shape[1])[0]
        ups = quantize_matrix(up_EFD.unflatten(1, (2, -1)), recipe)  # V3 Fig. 7
        downs = quantize_matrix(down_EDF, recipe)
        sent = x.picked(index_M)
        gate_MF, up_MF = torch.empty(2, rows, hidden_width, dtype=BF16, device=x_ND.device).unbind()
        for part, out_MF in enumerate((gate_MF, up_MF)):
            multiply_sorted(sent, ups.part(slice(None), part), counts, out_MF)
        hidden, gate, up = gate_forward(gate_MF, up_MF, recipe)
        y_MD = torch.empty(rows, x_ND.shape[1], dtype=BF16, device=x_ND.device)
        multiply_sorted(hidden, downs, counts, y_MD)
        weight_NA = weight_NA.float()
        if any(ctx.needs_input_grad):
            ctx.route, ctx.recipe, ctx.dtype, ctx.later = route, recipe, x_ND.dtype, later
            kept = (t for q in (x, gate, up, ups, downs) for t in q[:2])
            ctx.save_for_backward(token_M, row_NA, index_M, weight_NA, *kept)
        if route.fetch is not None:
            y_MD = route.fetch(put_back(y_MD, index_M).view(torch.uint8)).view(BF16)
        return add_copies(y_MD, row_NA, weight_NA).to(BF16).to(dtype)  # V3 Eq. (12)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        token_M, row_NA, index_M, weight_NA, *saved = ctx.saved_tensors
        x, gate, up = (Tiled(saved[i], saved[i + 1], ROWS) for i in (0, 2, 4))
        ups, downs = (Tiled(saved[i], saved[i + 1], SQUARES) for i in (6, 8))
        weight_M = torch.empty(token_M.numel(), device=weight_NA.device)
        weight_M[row_NA.flatten()] = weight_NA.flatten()
        dout = _Sent(grads[0], token_M, ctx.recipe)
        if ctx.route.post is not None:
            weight_M = dout.post(ctx.route.post, index_M, weight_M)
        dhidden_MF = torch.empty(gate.code.shape, dtype=BF16, device=x.code.device)
        dout.multiply(downs.transposed(), ctx.route.counts, dhidden_MF)
        middle = gate_backward(gate, up, dhidden_MF, weight_M)
        dx_MD = torch.empty(len(dhidden_MF), x.code.shape[1], dtype=BF16, device=x.code.device)
        recipe, runs, columns, hidden_MF = ctx.recipe, list(runs_of(ctx.route.counts)), [], middle.hidden_MF
        for e, start, stop in runs:
            both = [quantize_gradient(d[start:stop], recipe.inner()) for d in (middle.dgate_MF, middle.dup_MF)]
            gate_MD, up_MD = (input_gradient(row, ups.part(e, part)).float() for part, (row, _) in enumerate(both))
            dx_MD[start:stop] = gate_MD + up_MD
            columns.append([column for _, column in both])

        def make_gradients() -> tuple[Tensor, Tensor]:
            dup_E2FD = torch.zeros(ups.code.shape, device=x.code.device)
            ddown_EDF = torch.zeros(downs.code.shape, device=x.code.device)
            for (e, start, stop), of_up in zip(runs, columns):
                hidden_column = quantize_input(hidden_MF[start:stop], recipe.inner(), COLUMNS)
                weight_gradient(dout.columns(start, stop), hidden_column, ddown_EDF[e])
                x_column = turn(x, index_M[start:stop], ue8m0=recipe.input_ue8m0)
                for part, column in enumerate(of_up):
                    weight_gradient(column, x_column, dup_E2FD[e, part])
            return dup_E2FD.flatten(1, 2), ddown_EDF

        dups: tuple[Tensor | None, ...] = (None, None)
        if ctx.later is not None:
            ctx.later.put_off(make_gradients)
        else:
            dups = make_gradients()
        dweight_M = middle.dweight_M
        if ctx.route.fetch is not None:
            both = put_back(dx_MD, index_M).view(torch.uint8), put_back(dweight_M, index_M)[:, None].view(torch.uint8)
            both = ctx.route.fetch(torch.cat(both, 1))
            dx_MD, dweight_M = _numbers(both[:, :-4], BF16), _numbers(both[:, -4:], torch.float32)[:, 0]
        dx_ND = add_copies(dx_MD, row_NA, None).to(ctx.dtype)
        return dx_ND, dweight_M[row_NA], None, None, None, *dups, None, None, None, None


def pack_codes(q: Tiled, *further: Tensor) -> Tensor:
    """Codes, FP32 scales and further FP32 numbers [M] of rows as bytes, [M, D + 4 ceil(D / 128) + ...]."""
    numbers = [q.scale, *(each[:, None] for each in further)]
    return torch.cat([q.code.view(torch.uint8), *(each.contiguous().view(torch.uint8) for each in numbers)], 1)


def unpack_codes(packed: Tensor, width: int) -> tuple[Tiled, Tensor]:
    """Undo `pack_codes`: codes with their scales, and the further numbers [M, ...]."""
    code, numbers = packed[:, :width].contiguous().view(E4M3.dtype), _numbers(packed[:, width:], torch.float32)
    blocks = count_blocks(width)
    return Tiled(code, numbers[:, :blocks].contiguous(), ROWS), numbers[:, blocks:]


def _numbers(packed: Tensor, dtype: torch.dtype) -> Tensor:
    return packed.contiguous().view(dtype)


def put_back(rows_M: Tensor, index_M: Tensor) -> Tensor:
    """Rows in the order of the experts to the order in which they arrived."""
    return torch.empty_like(rows_M).index_copy_(0, index_M, rows_M)


class _Sent:
    """Gradients by outputs on their way to the experts, as codes."""

    def __init__(self, dout_ND: Tensor, token_M: Tensor, recipe: Recipe) -> None:
        self.recipe, self.token_M, self.dout_ND = recipe, token_M, dout_ND
        self.codes = self.sent = None
        if recipe.is_as_reported():  # one quantization a token, whichever experts it goes to
            self.codes = quantize(dout_ND, ROWS, ue8m0=recipe.gradient_ue8m0, floor=GRADIENT_FLOOR)
            self.sent = self.codes.picked(token_M)

    def multiply(self, matrices: Tiled, counts: tuple[int, ...], out: Tensor) -> None:
        """Each expert's rows, in tiles along the width, by the transpose of its matrix."""
        if self.sent is not None:
            multiply_sorted(self.sent, matrices, counts, out)
            return
        for e, start, stop in runs_of(counts):
            multiply_tiles(self._quantize(start, stop)[0], matrices.part(e), out.dtype, out[start:stop])

    def post(self, post: Rows, index_M: Tensor, weight_M: Tensor) -> Tensor:
        """Send the codes to their experts, with a weight each; return the weights in the order of the experts."""
        assert self.sent is not None
        self.codes, more = unpack_codes(post(pack_codes(self.sent, weight_M)), self.dout_ND.shape[1])
        self.token_M, self.sent = index_M, self.codes.picked(index_M)
        return more[:, 0].index_select(0, index_M)

    def columns(self, start: int, stop: int) -> Tiled:
        """Of one expert, in tiles along its tokens."""
        if self.codes is None:
            return self._quantize(start, stop)[1]
        ue8m0 = self.recipe.gradient_ue8m0
        return turn(self.codes, self.token_M[start:stop], ue8m0=ue8m0, floor=GRADIENT_FLOOR)

    def _quantize(self, start: int, stop: int) -> tuple[Tiled, Tiled]:
        return quantize_gradient(self.dout_ND.index_select(0, self.token_M[start:stop]), self.recipe)
