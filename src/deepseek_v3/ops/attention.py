"""Attention from latents, in its two equal forms.

    score = (q_content . key + rotate(q_rope) . rope key) * scale             one rope key, shared by all heads

Expanded: keys and values of every head have been made from the latent. Absorbed: W_UK moves to the query and W_UV to
the output, so that all heads attend to the latent itself.

    q . (W_UK latent) = (W_UK^T q) . latent

Letters: B batch, S queries, T keys, H heads, K content, R rotary, W = K + R, U value, E = K + U, C latent.
Source: arXiv:2412.19437, Eqs. (8) to (10); arXiv:2405.04434, section 2.1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.fp8.recipe import Recipe
from deepseek_v3.fp8.tiles import E5M6, ROWS, Tiled, dequantize, quantize
from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_attention
from deepseek_v3.ops.choice import kernel_serves
from deepseek_v3.ops.fp8_linear import linear_in_fp8
from deepseek_v3.ops.rotation import Rotation, rotate_pairs
from deepseek_v3.ops.slabs import causal_attention


def attend_expanded(
    query_BSHW: Tensor,
    key_value_BTHE: Tensor,
    rope_BTR: Tensor,
    rotation: Rotation,
    scale: float,
    mask_ST: Tensor | None = None,
) -> Tensor:
    """Attend from the last S of T positions, as in MHA; returns [B, S, H, U].

    Args:
        query_BSHW: content and rope of every head, the rope not yet turned.
        key_value_BTHE: content key and value of every head.
        rope_BTR: the shared rope key, turned.
        rotation: of the queries' positions.
        mask_ST: bool, True where a query may look: [S, T] or [B, 1, S, T]; None means causally, up to each one's own.
    """
    check_attention(query_BSHW, key_value_BTHE, rope_BTR, *rotation)
    if mask_ST is None and _kernel_attends(query_BSHW, key_value_BTHE, rope_BTR, rotation):
        return _run_kernel(query_BSHW, key_value_BTHE, rope_BTR, rotation, scale, in_e5m6=False)[0]
    heads, rotary = query_BSHW.shape[2], rope_BTR.shape[2]
    content = query_BSHW.shape[3] - rotary
    q_content_BSHK, q_rope_BSHR = query_BSHW.split([content, rotary], -1)
    k_content_BTHK, value_BTHU = key_value_BTHE.split([content, key_value_BTHE.shape[3] - content], -1)
    rope_BTHR = rope_BTR.unsqueeze(2).expand(-1, -1, heads, -1)
    turned_BSHW = torch.cat((q_content_BSHK, rotate_pairs(q_rope_BSHR, rotation)), -1)  # V3 Eq. (8), V3 Eq. (9)
    key_BTHW = torch.cat((k_content_BTHK, rope_BTHR), -1)  # V3 Eq. (4)
    if mask_ST is None:
        return causal_attention(turned_BSHW, key_BTHW, value_BTHU, scale)  # V3 Eq. (10)
    out_BHSU = F.scaled_dot_product_attention(
        turned_BSHW.transpose(1, 2),
        key_BTHW.transpose(1, 2),
        value_BTHU.transpose(1, 2),
        attn_mask=mask_ST,
        scale=scale,
    )
    return out_BHSU.transpose(1, 2)


def attend_and_project_in_fp8(
    query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, rotation: Rotation, scale: float, weight_DI: Tensor,
    recipe: Recipe,
) -> Tensor:  # fmt: skip
    """Attend causally as `attend_expanded`, then multiply by W_O^T in FP8; returns [B, S, D].

    What attention gives is read twice on the way back, for the gradient of W_O and for <dout, out> of attention: one
    E5M6 serves both. PyTorch's operations take the second from the probabilities, and need no output for it.

    Source: arXiv:2412.19437, 3.3.3: "These activations are also used in the backward pass of the attention operator".
    """
    check_attention(query_BSHW, key_value_BTHE, rope_BTR, *rotation)
    if not (recipe.keep_e5m6 and _kernel_attends(query_BSHW, key_value_BTHE, rope_BTR, rotation)):
        out_BSHU = attend_expanded(query_BSHW, key_value_BTHE, rope_BTR, rotation, scale)
        return linear_in_fp8(out_BSHU.flatten(2), weight_DI, recipe)
    out_BSHU, *kept = _run_kernel(query_BSHW, key_value_BTHE, rope_BTR, rotation, scale, in_e5m6=True)
    return linear_in_fp8(out_BSHU.flatten(2), weight_DI, recipe, Tiled(kept[0], kept[1], ROWS) if kept else None)


def attend_absorbed(
    query_BSHW: Tensor,
    latent_BTW: Tensor,
    up_HEC: Tensor,
    rotation: Rotation,
    scale: float,
    mask_ST: Tensor | None = None,
) -> Tensor:
    """Attend to the latent itself, all heads as one (MQA); scores and softmax in FP32; returns [B, S, H, U].

    Args:
        query_BSHW, rotation, mask_ST: as in `attend_expanded`; without a mask every query sees every latent.
        latent_BTW: latent and turned rope key of every position, C + R.
        up_HEC: W_UK above W_UV of every head.
    """
    width = up_HEC.shape[2]
    rotary = latent_BTW.shape[2] - width
    content = query_BSHW.shape[3] - rotary
    q_content_BSHK, q_rope_BSHR = query_BSHW.split([content, rotary], -1)
    up_key_HKC, up_value_HUC = up_HEC.split([content, up_HEC.shape[1] - content], 1)
    q_rope_BSHR = rotate_pairs(q_rope_BSHR, rotation)  # V3 Eq. (8)
    q_latent_BSHC = torch.einsum("bshk,hkc->bshc", q_content_BSHK, up_key_HKC)
    joined_BHSW = torch.cat((q_latent_BSHC, q_rope_BSHR), -1).transpose(1, 2)
    score_BHST = joined_BHSW @ latent_BTW.mT.unsqueeze(1) * scale
    if mask_ST is not None:
        score_BHST = score_BHST.masked_fill(~mask_ST, float("-inf"))
    weight_BHST = score_BHST.softmax(-1, dtype=torch.promote_types(score_BHST.dtype, torch.float32)).to(
        latent_BTW.dtype
    )
    context_BHSC = weight_BHST @ latent_BTW[..., :width].unsqueeze(1)  # V3 Eq. (10)
    return torch.einsum("bhsc,huc->bshu", context_BHSC, up_value_HUC)


def _kernel_attends(query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, rotation: Rotation) -> bool:
    """Whether the kernel takes these: one dtype it knows, FP32 angles."""
    same = query_BSHW.dtype == key_value_BTHE.dtype == rope_BTR.dtype
    knows = (
        query_BSHW.dtype in (torch.float32, torch.bfloat16)
        and rotation.cos.dtype == rotation.sin.dtype == torch.float32
    )
    near = {t.device.type for t in (query_BSHW, key_value_BTHE, rope_BTR, *rotation)} == {query_BSHW.device.type}
    return same and knows and near and kernel_serves(query_BSHW)


def _run_kernel(
    query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, rotation: Rotation, scale: float, *, in_e5m6: bool
) -> tuple[Tensor, ...]:
    """Outputs, and if a backward pass shall read them in E5M6, those codes and scales."""
    if rope_BTR.stride(2) != 1 or rope_BTR.stride(0) != rope_BTR.shape[1] * rope_BTR.stride(1):
        rope_BTR = rope_BTR.contiguous()  # the kernel wants whole rows, evenly apart
    turn = (angles.contiguous() for angles in rotation)
    return _Attention.apply(query_BSHW.contiguous(), key_value_BTHE.contiguous(), rope_BTR, *turn, scale, in_e5m6)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BSHW: Tensor, key_value_BTHE: Tensor, rope_BTR: Tensor, cos: Tensor, sin: Tensor, scale: float,
        in_e5m6: bool,
    ):  # fmt: skip
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
        kept = (out_BSHU,)
        if in_e5m6 and any(ctx.needs_input_grad):
            kept = quantize(out_BSHU.view(batch * queries, heads * value), ROWS, E5M6, ue8m0=True)[:2]
            ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(query_BSHW, key_value_BTHE, rope_BTR, cos, sin, logs_BHS, *kept)
        return (out_BSHU,) if kept[0] is out_BSHU else (out_BSHU, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        query_BSHW, key_value_BTHE, rope_BTR, cos, sin, logs_BHS, *kept = ctx.saved_tensors
        out_BSHU = kept[0]
        if len(kept) > 1:  # E5M6 has six bits behind the point and its scales are powers of two: BF16 holds them
            out_BSHU = dequantize(Tiled(kept[0], kept[1], ROWS)).to(query_BSHW.dtype)
        dquery, dkey_value = torch.empty_like(query_BSHW), torch.empty_like(key_value_BTHE)
        drope = rope_BTR.new_empty(rope_BTR.shape)
        run_kernel(
            "attention_backward", ctx.arguments[0], query_BSHW, key_value_BTHE, rope_BTR, rope_BTR.stride(1), cos, sin,
            ctx.arguments[1], out_BSHU, logs_BHS, grads[0].contiguous(), dquery, dkey_value, drope, *ctx.sizes,
        )  # fmt: skip
        return dquery, dkey_value, drope, None, None, None, None
