"""A decoder layer for a few tokens, in few PyTorch operations: the same mathematics as the model's.

The projections of the hidden state are one product, the rotary parts of queries and key turn together, gate and up are
one product, and of the experts only the chosen ones are read. Two forms of the three heavy parts, equal by test:

    eager       every product is one call of a matrix kernel, the norm is four operations instead of eight; the new
                latents are in the cache before attention reads it
    compiled    a product with one row is written as a sum, which the compiler fuses with the choice of the expert and
                spreads over the processor; the cache is only read, and the new latents are attended to beside it

Memory: q_a_proj + kv_a_proj_with_mqa, and gate + up of dense and shared experts, are copied side by side (0.7 % of V3's
weights), and the routers in FP32. W_UK, W_UV, the routed experts and all else are read where the model keeps them. Of a
model in FP8 W_UK and W_UV are copied too, decoded; the rest is decoded in every step, which is slow.

Letters: N tokens, B rows with S new tokens each (N = B * S), T slots, W = C + R cached values, H heads, K content,
R rotary, U value, C latent, D width, E experts, A experts per token, F hidden width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.model.block import Block
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.norm import RMSNorm

GATHER_UP_TO = 2  # tokens whose experts are gathered; for more, it is cheaper to sort the tokens by expert
DENSE_UP_TO = 16  # tokens that every expert may read, if nearly all experts are needed anyway

# (query_NHW, new latents NW) -> context_NHC
Attend = Callable[[Tensor, Tensor], Tensor]


class Turn(NamedTuple):
    """What turns interleaved pairs: x * cos + swap(x) * sin, each [N, 1, R], FP32."""

    cos: Tensor
    sin: Tensor


class FusedNorm:
    """RMSNorm in four operations.

        y = x / hypot(|x|, sqrt(D eps)) * (sqrt(D) weight)                               the same number, to rounding

    In BF16 the model's own norm is used: it rounds before the weight, as released.
    """

    def __init__(self, norm: RMSNorm) -> None:
        self.norm = norm
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the norm's present weight."""
        width = self.norm.weight.shape[0]
        self.exact = self.norm.weight.dtype in (torch.float32, torch.float64)
        self.weight_D = self.norm.weight * width**0.5
        self.floor = torch.full_like(self.norm.weight[:1], (width * self.norm.eps) ** 0.5)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Normalise the last axis."""
        if not self.exact:
            return self.norm.forward(x_ND)
        length_N1 = torch.hypot(torch.linalg.vector_norm(x_ND, 2, -1, True), self.floor)
        return x_ND / length_N1 * self.weight_D


class FusedLayer:
    """The weights of one layer as a step reads them."""

    def __init__(self, block: Block) -> None:
        self.block, self.attention = block, block.self_attn
        dense = block.mlp.shared_experts if isinstance(block.mlp, MixtureOfExperts) else block.mlp
        self.dense: SwiGLU | None = dense  # type: ignore[assignment]
        self.input_norm, self.post_norm = FusedNorm(block.input_layernorm), FusedNorm(block.post_attention_layernorm)
        self.latent_norm = FusedNorm(self.attention.kv_a_layernorm)
        self.query_norm = FusedNorm(self.attention.q_a_layernorm) if self.attention.low_rank_query else None
        empty = torch.empty(0)
        self.down_ID = self.gate_up_FD = self.up_key_HKC = self.up_value_HUC = self.router_ED = empty
        self.refresh()

    @torch.inference_mode(False)  # what is kept must be fit for an update in place, wherever it was made
    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights."""
        attention, dtype = self.attention, self.block.input_layernorm.weight.dtype

        def numbers_of(projection: Linear) -> Tensor:
            return projection.numbers("weight", dtype).detach()

        query = attention.q_a_proj if attention.low_rank_query else attention.q_proj
        self.down_ID = stack_rows(self.down_ID, numbers_of(query), numbers_of(attention.kv_a_proj_with_mqa))
        up_HEC = numbers_of(attention.kv_b_proj).unflatten(0, (attention.heads, -1))
        self.up_key_HKC, self.up_value_HUC = up_HEC.split([attention.content_width, attention.value_width], 1)
        if self.dense is not None:
            gate_up = numbers_of(self.dense.gate_proj), numbers_of(self.dense.up_proj)
            self.gate_up_FD = stack_rows(self.gate_up_FD, *gate_up)
        if isinstance(self.block.mlp, MixtureOfExperts):  # the gate is FP32, whatever the model is
            weight = self.block.mlp.gate.weight.detach()
            self.router_ED = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for norm in (self.input_norm, self.post_norm, self.latent_norm, self.query_norm):
            if norm is not None:
                norm.refresh()

    def read(self, x_ND: Tensor, turn: Turn, attend: Attend) -> Tensor:
        """Return the residual stream after this layer."""
        x_ND = x_ND + self.attend_tokens(self.input_norm(x_ND), turn, attend)
        normed_ND = self.post_norm(x_ND)
        if isinstance(self.block.mlp, MixtureOfExperts):
            x_ND = x_ND + self.mix_experts(self.block.mlp, normed_ND)
        if self.dense is not None:
            hidden_NF = gated(multiply(normed_ND, self.gate_up_FD))
            x_ND = x_ND + multiply(hidden_NF, self.dense.down_proj.numbers("weight", x_ND.dtype))
        return x_ND

    def attend_tokens(self, x_ND: Tensor, turn: Turn, attend: Attend) -> Tensor:
        """Latent attention, absorbed: W_UK on the query, W_UV on the context."""
        a = self.attention
        down_NI = multiply(x_ND, self.down_ID)
        query_NQ, latent_NC, key_NR = down_NI.split(
            [down_NI.shape[1] - a.latent_width - a.rope_width, a.latent_width, a.rope_width], 1
        )
        if self.query_norm is not None:
            query_NQ = multiply(self.query_norm(query_NQ), a.q_b_proj.numbers("weight", x_ND.dtype))
        content_NHK, rope_NHR = query_NQ.unflatten(-1, (a.heads, -1)).split([a.content_width, a.rope_width], -1)
        turned_NHR = turn_pairs(torch.cat((rope_NHR, key_NR.unsqueeze(1)), 1), turn)  # the shared key is the last head
        new_NW = torch.cat((self.latent_norm(latent_NC), turned_NHR[:, -1]), -1)
        query_NHC = multiply_heads(content_NHK, self.up_key_HKC)
        context_NHC = attend(torch.cat((query_NHC, turned_NHR[:, :-1]), -1), new_NW)
        out_NHU = multiply_heads(context_NHC, self.up_value_HUC.mT)
        return multiply(out_NHU.flatten(1), a.o_proj.numbers("weight", x_ND.dtype))

    def mix_experts(self, moe: MixtureOfExperts, x_ND: Tensor) -> Tensor:
        """The routed experts of every token, added up by weight; the choice is the router's own."""
        router, experts = moe.gate, moe.experts
        logits_NE = multiply(x_ND.to(self.router_ED.dtype), self.router_ED)
        score_NE = logits_NE.sigmoid() if router.sigmoid else logits_NE.softmax(-1)
        index_NA = router.choose_experts(score_NE)
        weight_NA = score_NE.gather(1, index_NA)
        if router.normalise:
            weight_NA = weight_NA / (weight_NA.sum(-1, keepdim=True) + 1e-20)
        weight_NA = weight_NA * router.scaling
        if experts.scales("gate_up_proj") is not None or experts.scales("down_proj") is not None:
            return experts(x_ND, weight_NA, index_NA)  # decodes those that are chosen
        count, read = x_ND.shape[0], index_NA.numel()
        if self.router_ED.shape[0] <= read and count <= DENSE_UP_TO:
            return ask_every_expert(x_ND, weight_NA, index_NA, experts.gate_up_proj, experts.down_proj)
        if torch.compiler.is_compiling():
            return sum_experts(x_ND, weight_NA, index_NA, experts.gate_up_proj, experts.down_proj)
        if count > GATHER_UP_TO:
            return experts(x_ND, weight_NA, index_NA)
        return gather_experts(x_ND, weight_NA, index_NA, experts.gate_up_proj, experts.down_proj)


def stack_rows(old: Tensor, *weights: Tensor) -> Tensor:
    """Return the weights above each other, written into `old` where they fit."""
    stacked = torch.cat([w.detach() for w in weights])
    fits = (old.shape, old.dtype, old.device) == (stacked.shape, stacked.dtype, stacked.device)
    return old.copy_(stacked) if fits else stacked


def multiply(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T. A single row is a sum when compiled: the compiler makes one loop of it, the kernel call is saved."""
    if torch.compiler.is_compiling() and x_NI.shape[0] == 1:
        return (weight_OI * x_NI).sum(-1, dtype=torch.promote_types(x_NI.dtype, torch.float32)).to(x_NI.dtype)[None]
    return F.linear(x_NI, weight_OI)


def multiply_heads(x_NHI: Tensor, weight_HIO: Tensor) -> Tensor:
    """Each head by its own matrix."""
    return torch.bmm(x_NHI.transpose(0, 1), weight_HIO).transpose(0, 1)


def turn_pairs(x_NHR: Tensor, turn: Turn) -> Tensor:
    """Turn every interleaved pair by its token's angle, in FP32, returned in the input's dtype."""
    wide_NHR = x_NHR.to(turn.cos.dtype)
    swapped_NHR = wide_NHR.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(wide_NHR * turn.cos, swapped_NHR, turn.sin).to(x_NHR.dtype)


def gated(gate_up_NF: Tensor) -> Tensor:
    """silu(gate) * up, of a product that holds gate above up."""
    gate_NF, up_NF = gate_up_NF.chunk(2, -1)
    return F.silu(gate_NF) * up_NF


def gather_experts(x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Copy the chosen experts together, then one batched product: few calls, though the weights move twice."""
    chosen_M, per_token = index_NA.flatten(), index_NA.shape[1]
    x_M1D = x_ND.repeat_interleave(per_token, 0).unsqueeze(1)
    hidden_M1F = gated(torch.bmm(x_M1D, up_EFD.index_select(0, chosen_M).mT))
    hidden_M1F = hidden_M1F * weight_NA.view(-1, 1, 1).to(x_ND.dtype)
    y_M1D = torch.bmm(hidden_M1F, down_EDF.index_select(0, chosen_M).mT)
    return y_M1D.view(*index_NA.shape, -1).sum(1)


def ask_every_expert(x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Every expert reads every token; those not chosen weigh 0. Two products, for a batch that needs nearly all."""
    experts, width, _ = up_EFD.shape
    up_NEF = F.linear(x_ND, up_EFD.flatten(0, 1)).view(-1, experts, width)
    weight_NE = torch.zeros_like(up_NEF[..., 0]).scatter_(1, index_NA, weight_NA.to(x_ND.dtype))
    hidden_NEF = gated(up_NEF) * weight_NE.unsqueeze(-1)
    return torch.bmm(hidden_NEF.transpose(0, 1), down_EDF.mT).sum(0)


def sum_experts(x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Compiled: choice and product in one loop, so that the chosen weights are read where they lie."""
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    up_NAF = (up_EFD[index_NA] * x_ND[:, None, None, :]).sum(-1, dtype=wide).to(x_ND.dtype)
    hidden_NAF = gated(up_NAF) * weight_NA.unsqueeze(-1).to(x_ND.dtype)
    return (down_EDF[index_NA] * hidden_NAF.unsqueeze(2)).sum(-1, dtype=wide).sum(1).to(x_ND.dtype)


def attend_appended(
    query_NHW: Tensor, latent_BTW: Tensor, mask_BSHT: Tensor | None, scale: float, width: int
) -> Tensor:
    """Attend to a cache that holds the new latents already, all heads as one (MQA); softmax in FP32."""
    batch, slots, _ = latent_BTW.shape
    score_BMT = torch.bmm(query_NHW.reshape(batch, -1, query_NHW.shape[-1]), latent_BTW.mT) * scale
    if mask_BSHT is not None:
        score_BSHT = score_BMT.view(batch, -1, query_NHW.shape[1], slots)
        score_BMT = score_BSHT.masked_fill(~mask_BSHT, float("-inf")).view_as(score_BMT)
    wide = torch.promote_types(score_BMT.dtype, torch.float32)
    weight_BMT = score_BMT.softmax(-1, dtype=wide).to(latent_BTW.dtype)
    return torch.bmm(weight_BMT, latent_BTW[..., :width]).view(*query_NHW.shape[:2], width)


def attend_beside(
    query_NHW: Tensor, new_NW: Tensor, latent_BTW: Tensor, mask_B1T: Tensor | None, scale: float, width: int
) -> Tensor:
    """Attend to a cache and to the new latents beside it: what a compiled step does, which writes nothing.

    Args:
        mask_B1T: bool, which slots hold a token of the row; None where all do.
    """
    batch, heads = latent_BTW.shape[0], query_NHW.shape[1]
    query_BMW = query_NHW.reshape(batch, -1, query_NHW.shape[-1])
    new_BSW = new_NW.view(batch, -1, new_NW.shape[-1])
    count = new_BSW.shape[1]
    old_BMT, new_BMS = torch.bmm(query_BMW, latent_BTW.mT), torch.bmm(query_BMW, new_BSW.mT)
    if mask_B1T is not None:
        old_BMT = old_BMT.masked_fill(~mask_B1T, float("-inf"))
    if count > 1:  # a new token sees itself and the new ones before it
        order_S = torch.arange(count, device=new_NW.device)
        later_MS = (order_S > order_S[:, None]).repeat_interleave(heads, 0)
        new_BMS = new_BMS.masked_fill(later_MS, float("-inf"))
    score_BMT = torch.cat((old_BMT, new_BMS), -1) * scale
    wide = torch.promote_types(score_BMT.dtype, torch.float32)
    weight_BMT = score_BMT.softmax(-1, dtype=wide).to(latent_BTW.dtype)
    slots = latent_BTW.shape[1]
    context_BMC = torch.bmm(weight_BMT[..., :slots], latent_BTW[..., :width])
    context_BMC = context_BMC + torch.bmm(weight_BMT[..., slots:], new_BSW[..., :width])
    return context_BMC.view(-1, heads, width)
