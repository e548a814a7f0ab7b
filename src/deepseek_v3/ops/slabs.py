"""Causal softmax attention in plain matrix products, a slab of queries at a time, with its gradient by hand.

    out = softmax(q k^T * scale + mask) v

A slab of queries (`slab_height`) meets only the keys up to its own end, so most of the masked half is never computed,
and only the diagonal square of a slab needs a mask. On CPU this beats the fused kernel, which runs its small tiles at a
third of the machine's matrix-product rate; it also needs no equal widths of key and value.

Letters: B batch, S queries, T keys (the last S of them are the queries' own), H heads, W score width, U value width.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_v3.ops.choice import slab_height


def causal_attention(query_BSHW: Tensor, key_BTHW: Tensor, value_BTHU: Tensor, scale: float) -> Tensor:
    """Attend from the last S of T positions, each to itself and everything before it; returns [B, S, H, U]."""
    return _CausalAttention.apply(query_BSHW, key_BTHW, value_BTHU, scale)  # type: ignore[return-value]


def _by_head(x_BSHW: Tensor) -> Tensor:
    """Copy to contiguous [B * H, S, W]."""
    return x_BSHW.transpose(1, 2).reshape(-1, x_BSHW.shape[1], x_BSHW.shape[3])


def _by_token(x_PSW: Tensor, batch: int) -> Tensor:
    """View [B * H, S, W] as [B, S, H, W]."""
    return x_PSW.unflatten(0, (batch, -1)).transpose(1, 2)


def _slabs(queries: int, keys: int):
    """Yield start and end of each slab, and how many keys it may see."""
    slab = slab_height(keys)
    for start in range(0, queries, slab):
        stop = min(start + slab, queries)
        yield start, stop, keys - queries + stop


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BSHW: Tensor, key_BTHW: Tensor, value_BTHU: Tensor, scale: float) -> Tensor:
        query, key, value = _by_head(query_BSHW), _by_head(key_BTHW), _by_head(value_BTHU)
        out = value.new_empty(query.shape[0], query.shape[1], value.shape[2])
        height = slab_height(key.shape[1])
        future = torch.full((height, height), float("-inf"), dtype=query.dtype, device=query.device).triu_(1)
        weights, keep = [], any(ctx.needs_input_grad)
        for start, stop, seen in _slabs(query.shape[1], key.shape[1]):
            size = stop - start
            score = query.new_empty(query.shape[0], size, seen)
            torch.baddbmm(score, query[:, start:stop], key[:, :seen].mT, beta=0, alpha=scale, out=score)
            score[:, :, seen - size :] += future[:size, :size]
            weight = torch.softmax(score, -1)  # reads BF16, computes in FP32
            torch.bmm(weight, value[:, :seen], out=out[:, start:stop])
            if keep:  # else each slab takes the memory of the one before, still in the cache
                weights.append(weight)
        if keep:
            ctx.scale, ctx.batch = scale, query_BSHW.shape[0]
            ctx.save_for_backward(query, key, value, *weights)
        return _by_token(out, query_BSHW.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query, key, value, *weights = ctx.saved_tensors
        dout = _by_head(grads[0])
        dquery, dkey, dvalue = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for weight, (start, stop, seen) in zip(weights, _slabs(query.shape[1], key.shape[1])):
            dout_slab = dout[:, start:stop]
            dvalue[:, :seen].baddbmm_(weight.mT, dout_slab)
            dweight = torch.bmm(dout_slab, value[:, :seen].mT)
            dscore = torch.ops.aten._softmax_backward_data(dweight, weight, -1, weight.dtype)
            slab = dquery[:, start:stop]
            torch.baddbmm(slab, dscore, key[:, :seen], beta=0, alpha=ctx.scale, out=slab)
            dkey[:, :seen].baddbmm_(dscore.mT, query[:, start:stop], alpha=ctx.scale)
        return _by_token(dquery, ctx.batch), _by_token(dkey, ctx.batch), _by_token(dvalue, ctx.batch), None
