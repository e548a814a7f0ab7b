"""Multi-head latent attention, in its two equal forms.

    latent = RMSNorm(W_DKV h)          key, value = W_UK latent, W_UV latent         (per head)
    score  = (q_content . key + rotate(q_rope) . rotate(W_KR h)) * scale             one rope key, shared by all heads

Expanded, for training and prefill: keys and values of every head are made from the latent. Absorbed, for decoding: W_UK
moves to the query and W_UV to the output, so that all heads attend to the cached latent itself.

    q . (W_UK latent) = (W_UK^T q) . latent

Letters: B batch, S queries, T keys, D width, H heads, K content, R rotary, U value, C latent, Q query latent.
Source: arXiv:2412.19437, Eqs. (1) to (11); arXiv:2405.04434, section 2.1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.cache import Past
from deepseek_v3.model.causal_attention import causal_attention
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.norm import LATENT_NORM_EPS, RMSNorm
from deepseek_v3.model.rope import Rotation, rotate_pairs, softmax_scale
from deepseek_v3.native import functions as native

ABSORB_UP_TO = 16  # new tokens per row; beyond, expanding the latent once costs less than wide scores


class MultiHeadLatentAttention(nn.Module):
    """One attention layer with the released projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.num_attention_heads, softmax_scale(config)
        self.content_width, self.rope_width = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_width, self.latent_width = config.v_head_dim, config.kv_lora_rank
        width, query_width = config.hidden_size, self.heads * config.qk_head_dim
        self.low_rank_query = config.q_lora_rank is not None
        if config.q_lora_rank is not None:
            self.q_a_proj = Linear(width, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, query_width)
        else:  # V2-Lite
            self.q_proj = Linear(width, query_width)
        self.kv_a_proj_with_mqa = Linear(width, config.cache_width)
        self.kv_a_layernorm = RMSNorm(self.latent_width, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(self.latent_width, self.heads * (self.content_width + self.value_width))
        self.o_proj = Linear(self.heads * self.value_width, width)

    def forward(self, x_BSD: Tensor, rotation: Rotation, past: Past | None = None) -> Tensor:
        """Attend causally, to the given tokens alone or also to those of the past.

        Args:
            rotation: of the positions of x_BSD.
            past: the tokens before these; its cache gets their latents.
        """
        query_BSHW = self.make_queries(x_BSD)
        latent_BTW = self.make_latent(x_BSD, rotation)
        if past is not None:
            latent_BTW = past.append(latent_BTW)
        absorb = past is not None and x_BSD.shape[1] <= ABSORB_UP_TO
        attend = self.attend_absorbed if absorb else self.attend_expanded
        out_BSHU = attend(query_BSHW, rotation, latent_BTW, None if past is None else past.mask_ST)
        return self.o_proj(out_BSHU.flatten(2))  # V3 Eq. (11)

    def make_queries(self, x_BSD: Tensor) -> Tensor:
        """Project to the queries of every head, content beside rope, the rope not yet turned."""
        if self.low_rank_query:
            q_BSE = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))  # V3 Eq. (6), V3 Eq. (7)
        else:
            q_BSE = self.q_proj(x_BSD)
        return q_BSE.unflatten(-1, (self.heads, -1))

    def turn_queries(self, query_BSHW: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Split into content and turned rope queries."""
        content_BSHK, rope_BSHR = query_BSHW.split([self.content_width, self.rope_width], -1)
        return content_BSHK, rotate_pairs(rope_BSHR, rotation)  # V3 Eq. (8)

    def make_latent(self, x_BSD: Tensor, rotation: Rotation) -> Tensor:
        """Project to what the cache holds: the normed latent, and the one rotated key beside it (not normed)."""
        latent_BSC, key_BSR = self.kv_a_proj_with_mqa(x_BSD).split([self.latent_width, self.rope_width], -1)
        key_BSR = rotate_pairs(key_BSR.unsqueeze(-2), rotation).squeeze(-2)  # V3 Eq. (3)
        return torch.cat((self.kv_a_layernorm(latent_BSC), key_BSR), -1)  # V3 Eq. (1)

    def attend_expanded(
        self, query_BSHW: Tensor, rotation: Rotation, latent_BTW: Tensor, mask_ST: Tensor | None
    ) -> Tensor:
        """Make keys and values of every head from the latent, then attend as in MHA; without a mask, causally."""
        latent_BTC, rope_BTR = latent_BTW.split([self.latent_width, self.rope_width], -1)
        key_value_BTHE = self.kv_b_proj(latent_BTC).unflatten(-1, (self.heads, -1))  # V3 Eq. (2), V3 Eq. (5)
        if mask_ST is None and native.attention_serves(query_BSHW, key_value_BTHE, rope_BTR, rotation.cos):
            return native.attend_causally(query_BSHW, key_value_BTHE, rope_BTR, *rotation, self.scale)
        q_content_BSHK, q_rope_BSHR = self.turn_queries(query_BSHW, rotation)
        k_content_BTHK, value_BTHU = key_value_BTHE.split([self.content_width, self.value_width], -1)
        rope_BTHR = rope_BTR.unsqueeze(2).expand(-1, -1, self.heads, -1)
        turned_BSHW = torch.cat((q_content_BSHK, q_rope_BSHR), -1)  # V3 Eq. (9)
        key_BTHW = torch.cat((k_content_BTHK, rope_BTHR), -1)  # V3 Eq. (4)
        if mask_ST is None:
            return causal_attention(turned_BSHW, key_BTHW, value_BTHU, self.scale)  # V3 Eq. (10)
        out_BHSU = F.scaled_dot_product_attention(
            turned_BSHW.transpose(1, 2),
            key_BTHW.transpose(1, 2),
            value_BTHU.transpose(1, 2),
            attn_mask=mask_ST,
            scale=self.scale,
        )
        return out_BHSU.transpose(1, 2)

    def attend_absorbed(
        self, query_BSHW: Tensor, rotation: Rotation, latent_BTW: Tensor, mask_ST: Tensor | None
    ) -> Tensor:
        """Attend to the latent itself, all heads as one (MQA); scores and softmax in FP32."""
        q_content_BSHK, q_rope_BSHR = self.turn_queries(query_BSHW, rotation)
        up_HEC = self.kv_b_proj.numbers("weight", query_BSHW.dtype).unflatten(0, (self.heads, -1))
        up_key_HKC, up_value_HUC = up_HEC.split([self.content_width, self.value_width], 1)
        q_latent_BSHC = torch.einsum("bshk,hkc->bshc", q_content_BSHK, up_key_HKC)
        joined_BHSW = torch.cat((q_latent_BSHC, q_rope_BSHR), -1).transpose(1, 2)
        score_BHST = joined_BHSW @ latent_BTW.mT.unsqueeze(1) * self.scale
        if mask_ST is not None:
            score_BHST = score_BHST.masked_fill(~mask_ST, float("-inf"))
        weight_BHST = score_BHST.softmax(-1, dtype=torch.promote_types(score_BHST.dtype, torch.float32)).to(
            latent_BTW.dtype
        )
        context_BHSC = weight_BHST @ latent_BTW[..., : self.latent_width].unsqueeze(1)  # V3 Eq. (10)
        return torch.einsum("bhsc,huc->bshu", context_BHSC, up_value_HUC)
