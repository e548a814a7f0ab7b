"""Attention with fewer heads of keys than of queries, for comparisons with latent attention: MHA, GQA and MQA.

    score = rotate(q_h) . rotate(k_g) / sqrt(W)        query head h reads the keys and values of head g = h G / H

G = H is multi-head attention (MHA), G = 1 multi-query attention (MQA), all between grouped-query attention (GQA).
A cache would hold 2 G W numbers a token and layer. The whole width of a head is turned, as in LLaMA.

Letters: B batch, S positions, H query heads, G key heads, W width of a head.
Source: arXiv:1911.02150 (MQA); arXiv:2305.13245 (GQA).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model import block
from deepseek_v3.model.linear import Linear


class KeyHeadAttention(nn.Module):
    """One attention layer with H = `num_attention_heads` of W = `qk_rope_head_dim`, and some heads of keys and values.

    Raises:
        ValueError: the key heads do not divide the query heads.
    """

    def __init__(self, config: ModelConfig, key_heads: int) -> None:
        super().__init__()
        self.width, heads, hidden = config.qk_rope_head_dim, config.num_attention_heads, config.hidden_size
        if heads % key_heads:
            raise ValueError(f"{key_heads} key heads do not divide num_attention_heads={heads}")
        self.shared_by = heads // key_heads
        self.q_proj, self.o_proj = Linear(hidden, heads * self.width), Linear(heads * self.width, hidden)
        self.k_proj, self.v_proj = (Linear(hidden, key_heads * self.width) for _ in range(2))

    def forward(self, x_BSD: Tensor, rotation: ops.Rotation, past: Any = None) -> Tensor:
        """Attend causally within the given tokens.

        Raises:
            ValueError: there is a past: it has no cache.
        """
        if past is not None:
            raise ValueError("attention by key heads is trained and measured here; it has no cache")
        query_BSHW, key_BSGW, value_BSGW = (
            project(x_BSD).unflatten(-1, (-1, self.width)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        turned = (ops.rotate_pairs(part, rotation) for part in (query_BSHW, key_BSGW))
        query_BHSW, key_BGSW, value_BGSW = (part.transpose(1, 2) for part in (*turned, value_BSGW))
        key_BHSW, value_BHSW = (part.repeat_interleave(self.shared_by, 1) for part in (key_BGSW, value_BGSW))
        out_BHSW = F.scaled_dot_product_attention(query_BHSW, key_BHSW, value_BHSW, is_causal=True)
        return self.o_proj(out_BHSW.transpose(1, 2).flatten(2))


@contextmanager
def attention_by(key_heads: int) -> Iterator[None]:
    """Let models that are built meanwhile have attention with so many key heads; 0 leaves them latent attention."""
    latent = block.MultiHeadLatentAttention
    if key_heads:
        block.MultiHeadLatentAttention = partial(KeyHeadAttention, key_heads=key_heads)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        block.MultiHeadLatentAttention = latent
