"""A decoder layer for a few tokens, in few operations: the same mathematics as the model's.

The projections of the hidden state are one product, the rotary parts of queries and key turn together, gate and up are
one product, and of the experts only the chosen ones are read. Two forms of the three heavy parts, equal by test:

    eager       every product is one call of a matrix kernel; the new latents are in the cache before attention reads it
    compiled    a product with one row is written as a sum, which the compiler fuses with the choice of the expert and
                spreads over the cores; the cache is only read, and the new latents are attended to beside it

Memory: q_a_proj + kv_a_proj_with_mqa, and gate + up of dense and shared experts, are copied side by side (0.7 % of V3's
weights), and the routers in FP32. W_UK, W_UV, the routed experts and all else are read where the model keeps them.

Letters: N tokens, B rows with S new tokens each (N = B * S), T slots, W = C + R cached values, H heads, K content,
R rotary, U value, C latent, D width, E experts, A experts per token, F hidden width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.model.block import Block
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import MixtureOfExperts

GATHER_UP_TO = 2  # tokens whose experts are read one by one; for more, every expert reads its tokens at once

# (query_NHW, new latents NW) -> context_NHC
Attend = Callable[[Tensor, Tensor], Tensor]


class Turn(NamedTuple):
    """What turns interleaved pairs: x * cos + swap(x) * sin, each [N, 1, R], FP32."""

    cos: Tensor
    sin: Tensor


class FusedLayer:
    """The weights of one layer as a step reads them."""

    def __init__(self, block: Block) -> None:
        self.block, self.attention = block, block.self_attn
        dense = block.mlp.shared_experts if isinstance(block.mlp, MixtureOfExperts) else block.mlp
        self.dense: SwiGLU | None = dense  # type: ignore[assignment]
        empty = torch.empty(0)
        self.down_ID = self.gate_up_FD = self.up_key_HKC = self.up_value_HUC = self.router_ED = empty
        self.refresh()

    @torch.inference_mode(False)  # what is kept must be fit for an update in place, wherever it was made
    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights."""
        attention = self.attention
        query = attention.q_a_proj if attention.low_rank_query else attention.q_proj
        self.down_ID = stack_rows(self.down_ID, query.weight, attention.kv_a_proj_with_mqa.weight)
        up_HEC = attention.kv_b_proj.weight.detach().unflatten(0, (attention.heads, -1))
        self.up_key_HKC, self.up_value_HUC = up_HEC.split([attention.content_width, attention.value_width], 1)
        if self.dense is not None:
            self.gate_up_FD = stack_rows(self.gate_up_FD, self.dense.gate_proj.weight, self.dense.up_proj.weight)
        if isinstance(self.block.mlp, MixtureOfExperts):  # the gate is FP32, whatever the model is
            weight = self.block.mlp.gate.weight.detach()
            self.router_ED = weight.to(torch.promote_types(weight.dtype, torch.float32))

    def read(self, x_ND: Tensor, turn: Turn, attend: Attend) -> Tensor:
        """Return the residual stream after this layer."""
        x_ND = x_ND + self.attend_tokens(self.block.input_layernorm(x_ND), turn, attend)
        normed_ND = self.block.post_attention_layernorm(x_ND)
        if isinstance(self.block.mlp, MixtureOfExperts):
            x_ND = x_ND + self.mix_experts(self.block.mlp, normed_ND)
        if self.dense is not None:
            hidden_NF = gated(multiply(normed_ND, self.gate_up_FD))
            x_ND = x_ND + multiply(hidden_NF, self.dense.down_proj.weight)
        return x_ND

    def attend_tokens(self, x_ND: Tensor, turn: Turn, attend: Attend) -> Tensor:
        """Latent attention, absorbed: W_UK on the query, W_UV on the context."""
        a = self.attention
        down_NI = multiply(x_ND, self.down_ID)
        query_NQ, latent_NC, key_NR = down_NI.split(
            [down_NI.shape[1] - a.latent_width - a.rope_width, a.latent_width, a.rope_width], 1
        )
        if a.low_rank_query:
            query_NQ = multiply(a.q_a_layernorm(query_NQ), a.q_b_proj.weight)
        content_NHK, rope_NHR = query_NQ.unflatten(-1, (a.heads, -1)).split([a.content_width, a.rope_width], -1)
        turned_NHR = turn_pairs(torch.cat((rope_NHR, key_NR.unsqueeze(1)), 1), turn)  # the shared key is the last head
        new_NW = torch.cat((a.kv_a_layernorm(latent_NC), turned_NHR[:, -1]), -1)
        query_NHC = multiply_heads(content_NHK, self.up_key_HKC)
        context_NHC = attend(torch.cat((query_NHC, turned_NHR[:, :-1]), -1), new_NW)
        out_NHU = multiply_heads(context_NHC, self.up_value_HUC.mT)
        return multiply(out_NHU.flatten(1), a.o_proj.weight)

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
        if torch.compiler.is_compiling():
            return sum_experts(x_ND, weight_NA, index_NA, experts.gate_up_proj, experts.down_proj)
        if x_ND.shape[0] <= GATHER_UP_TO:
            return read_experts(x_ND, weight_NA, index_NA, experts.gate_up_proj, experts.down_proj)
        return experts(x_ND, weight_NA, index_NA)


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


def read_experts(x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """Eager: one matrix-vector product per token and chosen expert, none of whose weights is copied."""
    width = index_NA.shape[1]
    chosen = index_NA.flatten().tolist()
    hidden_MF = gated(torch.stack([torch.mv(up_EFD[e], x_ND[i // width]) for i, e in enumerate(chosen)]))
    hidden_MF = hidden_MF * weight_NA.reshape(-1, 1).to(hidden_MF.dtype)
    y_ND = torch.zeros_like(x_ND)
    for i, e in enumerate(chosen):
        y_ND[i // width].addmv_(down_EDF[e], hidden_MF[i])
    return y_ND


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
