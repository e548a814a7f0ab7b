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

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.recipe import Recipe
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.norm import LATENT_NORM_EPS, RMSNorm
from deepseek_v3.model.rope import softmax_scale
from deepseek_v3.model.section import Section, Seen


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

    def forward(self, x_BSD: Tensor, rotation: ops.Rotation, past: Seen | None = None) -> Tensor:
        """Attend causally, to the given tokens alone or also to those of the past.

        Args:
            rotation: of the positions of x_BSD.
            past: the tokens before these, whose cache gets their latents; or what each may see of the given ones; or
                which section of a row they are.
        """
        query_BSHW = self.make_queries(x_BSD)
        latent_BTW = self.make_latent(x_BSD, rotation)
        if past is not None:
            latent_BTW = past.append(latent_BTW)
        if past is None and type(self.o_proj) is Linear and self.o_proj.recipe is not None:
            return self.attend_in_fp8(query_BSHW, rotation, latent_BTW, self.o_proj.recipe)
        absorb = past is not None and not isinstance(past, Section) and ops.absorbs(x_BSD.shape[1])
        absorb = absorb and type(self.kv_b_proj) is Linear
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

    def make_latent(self, x_BSD: Tensor, rotation: ops.Rotation) -> Tensor:
        """Project to what the cache holds: the normed latent, and the one rotated key beside it (not normed)."""
        latent_BSC, key_BSR = self.kv_a_proj_with_mqa(x_BSD).split([self.latent_width, self.rope_width], -1)
        key_BSR = ops.rotate_pairs(key_BSR.unsqueeze(-2), rotation).squeeze(-2)  # V3 Eq. (3)
        return torch.cat((self.kv_a_layernorm(latent_BSC), key_BSR), -1)  # V3 Eq. (1)

    def attend_expanded(
        self, query_BSHW: Tensor, rotation: ops.Rotation, latent_BTW: Tensor, mask_ST: Tensor | None
    ) -> Tensor:
        """Make keys and values of every head from the latent, then attend as in MHA; without a mask, causally."""
        key_value_BTHE, rope_BTR = self.make_keys_and_values(latent_BTW)
        return ops.attend_expanded(query_BSHW, key_value_BTHE, rope_BTR, rotation, self.scale, mask_ST)

    def attend_in_fp8(self, query_BSHW: Tensor, rotation: ops.Rotation, latent_BTW: Tensor, recipe: Recipe) -> Tensor:
        """Attend causally and project, as FP8 training does both."""
        key_value_BTHE, rope_BTR = self.make_keys_and_values(latent_BTW)
        return ops.attend_and_project_in_fp8(
            query_BSHW, key_value_BTHE, rope_BTR, rotation, self.scale, self.o_proj.weight, recipe
        )

    def make_keys_and_values(self, latent_BTW: Tensor) -> tuple[Tensor, Tensor]:
        """Content keys beside values of every head, [B, T, H, K + U], and the shared rope key."""
        latent_BTC, rope_BTR = latent_BTW.split([self.latent_width, self.rope_width], -1)
        return self.kv_b_proj(latent_BTC).unflatten(-1, (self.heads, -1)), rope_BTR  # V3 Eq. (2), V3 Eq. (5)

    def attend_absorbed(
        self, query_BSHW: Tensor, rotation: ops.Rotation, latent_BTW: Tensor, mask_ST: Tensor | None
    ) -> Tensor:
        """Attend to the latent itself, all heads as one (MQA)."""
        up_HEC = self.kv_b_proj.dequantized_weight("weight", query_BSHW.dtype).unflatten(0, (self.heads, -1))
        return ops.attend_absorbed(query_BSHW, latent_BTW, up_HEC, rotation, self.scale, mask_ST)
