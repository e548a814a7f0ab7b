"""The kernels as operations with gradients. Each equals a few PyTorch operations, which serve where kernels cannot.

    if serves(x_ND, weight_OD): y = linear(x_ND, weight_OD)

Activations are FP32 with FP32 weights, or BF16 with BF16 or FP32 weights (autocast: weights are rounded on their way
into a product, and their gradients come back in FP32). Weights may also be E4M3 codes with block scales, which are
decoded to the activations' dtype on their way; then there is no gradient. Every sum is in FP32.

Letters: N tokens, D width, I and O the two sides of a weight, E experts, A experts per token, F hidden width, M = N * A
rows sorted by expert.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_v3.native.build import have_kernels, run_kernel

KINDS = {
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.float32): 1,
    (torch.bfloat16, torch.bfloat16): 2,
    (torch.float32, torch.float8_e4m3fn): 3,
    (torch.bfloat16, torch.float8_e4m3fn): 4,
}

FEWEST_ROWS = 32  # below, packing the weights costs more than a product that reads them where they lie


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether kernels take these: on a CPU, rows enough, of dtypes they know, widths even in BF16, not being traced."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() < FEWEST_ROWS * x.shape[-1]:
        return False
    dtype = activation_dtype(x)
    if dtype not in (torch.float32, torch.bfloat16) or not have_kernels():
        return False
    if dtype == torch.bfloat16 and any(w.shape[-1] % 2 or w.shape[-2] % 2 for w in weights):
        return False
    kinds = {w.dtype for w in weights}
    if torch.float8_e4m3fn in kinds and (len(kinds) > 1 or (torch.is_grad_enabled() and x.requires_grad)):
        return False
    return all((dtype, kind) in KINDS for kind in kinds) and all(w.is_contiguous() for w in weights)


def activation_dtype(x: Tensor) -> torch.dtype:
    """The dtype a product of `x` is computed in: that of autocast, where it is on."""
    autocast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype


def _check_backward(kind: int) -> None:
    """Refuse FP8 codes, for which `serves` should have said no: read as numbers, they are beyond their memory's end."""
    if kind >= KINDS[torch.float32, torch.float8_e4m3fn]:
        raise RuntimeError("the kernels have no gradient for weights in FP8")


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
        _check_backward(ctx.kind)
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
    x_ND = x_ND.to(activation_dtype(x_ND)).contiguous()
    return _Experts.apply(x_ND, weight_NA, index_NA, up_EFD, down_EDF, up_scale, down_scale)  # type: ignore[return-value]


def choose_experts(
    score_NE: Tensor, bias_E: Tensor | None, per_token: int, groups: int, kept: int, *, best_two: bool
) -> Tensor:
    """Pick the best `per_token` by score and bias within the `kept` best groups, int64 [N, A].

    Args:
        best_two: a group is worth its best two together (V3), else its best (V2).
    """
    tokens, experts = score_NE.shape
    index_NA = torch.empty(tokens, per_token, dtype=torch.int64)
    run_kernel(
        "choose_experts", score_NE.contiguous(), bias_E, index_NA, tokens, experts, per_token, groups, kept,
        int(best_two), torch.get_num_threads(),
    )  # fmt: skip
    return index_NA


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, cos: Tensor, sin: Tensor, scale: float
    ):
        batch, queries, heads, width = query_BSHW.shape
        keys, rotary = rope_BTR.shape[1:]
        value = key_value_BTHE.shape[3] - (width - rotary)
        out_BSHU = query_BSHW.new_empty(batch, queries, heads, value)
        logs_BHS = torch.empty(batch, heads, queries) if any(ctx.needs_input_grad) else None
        turn_stride = queries * rotary // 2 if cos.dim() == 3 else 0
        ctx.arguments = (int(query_BSHW.dtype == torch.bfloat16), turn_stride)
        ctx.sizes = (batch, queries, keys, heads, width - rotary, rotary, value, scale, torch.get_num_threads())
        run_kernel(
            "attention_forward", ctx.arguments[0], query_BSHW, key_value_BTHE, rope_BTR, rope_BTR.stride(1), cos, sin,
            turn_stride, out_BSHU, logs_BHS, *ctx.sizes,
        )  # fmt: skip
        ctx.save_for_backward(query_BSHW, key_value_BTHE, rope_BTR, cos, sin, out_BSHU, logs_BHS)
        return out_BSHU

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query_BSHW, key_value_BTHE, rope_BTR, cos, sin, out_BSHU, logs_BHS = ctx.saved_tensors
        dquery, dkey_value = torch.empty_like(query_BSHW), torch.empty_like(key_value_BTHE)
        drope = rope_BTR.new_empty(rope_BTR.shape)
        run_kernel(
            "attention_backward", ctx.arguments[0], query_BSHW, key_value_BTHE, rope_BTR, rope_BTR.stride(1), cos, sin,
            ctx.arguments[1], out_BSHU, logs_BHS, grads[0].contiguous(), dquery, dkey_value, drope, *ctx.sizes,
        )  # fmt: skip
        return dquery, dkey_value, drope, None, None, None


def attention_serves(query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, cos: Tensor) -> bool:
    """Whether `attend_causally` takes these: one dtype it knows, FP32 angles."""
    same = query_BSHW.dtype == key_value_BTHE.dtype == rope_BTR.dtype
    return (
        same
        and cos.dtype == torch.float32
        and query_BSHW.dtype in (torch.float32, torch.bfloat16)
        and serves(query_BSHW)
    )


def attend_causally(
    query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, cos: Tensor, sin: Tensor, scale: float
) -> Tensor:
    """Attend from the last S of T positions to everything up to each; returns [B, S, H, U].

    Args:
        query_BSHW: content and rope of every head, the rope not yet turned.
        key_value_BTHE: content key and value of every head.
        rope_BTR: the shared rope key, turned; its last axis contiguous, rows T apart evenly.
        cos, sin: of the queries' positions, FP32 [S, R / 2] or [B, S, R / 2].
    """
    if rope_BTR.stride(2) != 1 or rope_BTR.stride(0) != rope_BTR.shape[1] * rope_BTR.stride(1):
        rope_BTR = rope_BTR.contiguous()
    return _Attention.apply(  # type: ignore[return-value]
        query_BSHW.contiguous(), key_value_BTHE.contiguous(), rope_BTR, cos.contiguous(), sin.contiguous(), scale
    )


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
        _check_backward(kind)
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


def linear(x: Tensor, weight_OI: Tensor, scale: Tensor | None = None) -> Tensor:
    """Multiply by a weight's transpose, [..., I] -> [..., O]; of E4M3 codes with the scales of their blocks."""
    x_NI = x.to(activation_dtype(x)).reshape(-1, x.shape[-1]).contiguous()
    y_NO: Tensor = _Linear.apply(x_NI, weight_OI, scale)  # type: ignore[assignment]
    return y_NO.view(*x.shape[:-1], -1)


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
        _check_backward(ctx.kind)
        x_ND, gate_FD, up_FD, down_DF, gate_up_NF, counts_E = ctx.saved_tensors
        dx, dgate, dup, ddown = (torch.empty_like(t) for t in (x_ND, gate_FD, up_FD, down_DF))
        run_kernel(
            "experts_backward", ctx.kind, x_ND, None, gate_FD, up_FD, down_DF, 0, 0, counts_E, None, None, gate_up_NF,
            grads[0].contiguous(), dx, None, dgate, dup, ddown, *ctx.sizes, torch.get_num_threads(),
        )  # fmt: skip
        return dx, dgate, dup, ddown, None, None, None


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
    x_ND = x.to(activation_dtype(x)).reshape(-1, x.shape[-1]).contiguous()
    y_ND = _SwiGLU.apply(x_ND, gate_FD, up_FD, down_DF, gate_scale, up_scale, down_scale)
    return y_ND.view(x.shape)  # type: ignore[union-attr]


def _is_bf16(*tensors: Tensor) -> list[int]:
    return [int(t.dtype == torch.bfloat16) for t in tensors]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        width = x.shape[-1]
        x_ND = x.reshape(-1, width) if x.stride(-1) == 1 else x.contiguous().view(-1, width)
        y = torch.empty(x.shape, dtype=dtype)
        rstd_N = torch.empty(x_ND.shape[0])
        ctx.arguments = (*_is_bf16(x, y, weight_D), x_ND.stride(0), x_ND.shape[0], width)
        kinds, (stride, rows, _) = ctx.arguments[:3], ctx.arguments[3:]
        run_kernel(
            "rms_norm_forward", *kinds, x_ND, stride, weight_D, y, rstd_N, rows, width, eps, torch.get_num_threads()
        )
        ctx.save_for_backward(x_ND, weight_D, rstd_N)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_ND, weight_D, rstd_N = ctx.saved_tensors
        kinds, (stride, rows, width) = ctx.arguments[:3], ctx.arguments[3:]
        dx, dweight_D = torch.empty(ctx.shape, dtype=x_ND.dtype), torch.empty_like(weight_D)
        dy = grads[0].contiguous()
        run_kernel(
            "rms_norm_backward", *kinds, x_ND, stride, weight_D, rstd_N, dy, dx, dweight_D, rows, width,
            torch.get_num_threads(),
        )  # fmt: skip
        return dx, dweight_D, None, None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalise the last axis; returned in `dtype`, FP32 or BF16."""
    return _RMSNorm.apply(x, weight_D, eps, dtype)  # type: ignore[return-value]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, ignored: int) -> Tensor:
        nats_N, dhidden_ND, dweight_VD = torch.empty(hidden_ND.shape[0]), None, None
        if any(ctx.needs_input_grad):
            dhidden_ND, dweight_VD = torch.empty_like(hidden_ND), torch.empty_like(weight_VD)
        run_kernel(
            "head_loss", KINDS[hidden_ND.dtype, weight_VD.dtype], hidden_ND, weight_VD, labels_N, ignored, nats_N,
            dhidden_ND, dweight_VD, hidden_ND.shape[0], *weight_VD.shape, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(dhidden_ND, dweight_VD)
        return nats_N.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        dhidden_ND, dweight_VD = ctx.saved_tensors
        scale = float(grads[0])
        return dhidden_ND * scale, dweight_VD * scale, None, None


def head_loss(hidden_BSD: Tensor, weight_VD: Tensor, labels_BS: Tensor, ignored: int) -> Tensor:
    """Sum of -log P of the labels that are not `ignored`, in FP32, from what the head reads.

    The logits are made, used and overwritten some hundred tokens at a time.

    Raises:
        IndexError: a label that is no row of the head.
    """
    labels_N, hidden_ND = labels_BS.reshape(-1).contiguous(), hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    counted = labels_N[labels_N != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < weight_VD.shape[0]:
        raise IndexError(f"labels from {counted.min()} to {counted.max()} for {weight_VD.shape[0]} logits")
    hidden_ND = hidden_ND.to(activation_dtype(hidden_ND)).contiguous()
    return _HeadLoss.apply(hidden_ND, weight_VD, labels_N, ignored)  # type: ignore[return-value]
