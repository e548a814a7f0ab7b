"""Absorbed latent attention of a decoding step on a GPU, over the block table, the cache split among programs.

    part    softmax over some of the latents, unnormalized, with the logarithm of its sum
    merge   out = sum over parts of  exp(log_part - log_all) * part

A row's queries of all heads read the same latents, of which the first C are the values too.

Letters: B rows, H heads, C latent, R rotary, W = C + R, P parts.
Source: arXiv:2405.04434, section 2.1; arXiv:2412.19437, Eqs. (9) and (10).
"""

import triton
import triton.language as tl


@triton.jit
def attend_part_kernel(
    query, cache, tables, lengths, part_out, part_log, scale, heads, table_stride, block_size,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one row against one part of its latents; query [B, H, W], part_out [B, H, P, C] FP32."""
    batch, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    latent, rotary, token = tl.arange(0, C), tl.arange(0, R), tl.arange(0, TOKENS)
    width = C + R
    query_at = query + (batch * heads + head[:, None]) * width
    of_head = head[:, None] < heads
    query_latent = tl.load(query_at + latent[None, :], mask=of_head, other=0.0)
    query_rope = tl.load(query_at + C + rotary[None, :], mask=of_head, other=0.0)
    length = tl.load(lengths + batch)
    share = tl.cdiv(tl.cdiv(length, PARTS), TOKENS) * TOKENS
    largest = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    out = tl.zeros((HEADS, C), tl.float32)
    for start in range(part * share, tl.minimum(length, (part + 1) * share), TOKENS):
        position = start + token
        seen = position < length
        block = tl.load(tables + batch * table_stride + position // block_size, mask=seen, other=0).to(tl.int64)
        row = (block * block_size + position % block_size) * width
        key = tl.load(cache + row[:, None] + latent[None, :], mask=seen[:, None], other=0.0)
        rope = tl.load(cache + row[:, None] + C + rotary[None, :], mask=seen[:, None], other=0.0)
        score = tl.dot(query_latent, tl.trans(key)) + tl.dot(query_rope, tl.trans(rope))  # V3 Eq. (10)
        score = tl.where(seen[None, :], score * scale, float("-inf"))
        top = tl.maximum(largest, tl.max(score, 1))
        weight, rest = tl.exp(score - top[:, None]), tl.exp(largest - top)
        total = total * rest + tl.sum(weight, 1)
        out = out * rest[:, None] + tl.dot(weight.to(key.dtype), key)
        largest = top
    some = total > 0  # a part behind the row's end has seen nothing
    total = tl.where(some, total, 1.0)
    where = (batch * heads + head) * PARTS + part
    tl.store(part_log + where, tl.where(some, largest + tl.log(total), float("-inf")), mask=head < heads)
    tl.store(part_out + where[:, None] * C + latent[None, :], out / total[:, None], mask=of_head)


@triton.jit
def merge_parts_kernel(part_out, part_log, out, C: tl.constexpr, PARTS: tl.constexpr):
    """One head of one row a program; out [B, H, C]."""
    pair = tl.program_id(0).to(tl.int64)
    part, latent = tl.arange(0, PARTS), tl.arange(0, C)
    log = tl.load(part_log + pair * PARTS + part)
    weight = tl.exp(log - tl.max(log, 0))
    parts = tl.load(part_out + (pair * PARTS + part[:, None]) * C + latent[None, :])
    number = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + pair * C + latent, number.to(out.dtype.element_ty))
