"""The pre-norm block: x += attention(norm(x)), then x += feed_forward(norm(x)).

Source: arXiv:2412.19437, Figure 2.
"""

from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.attention import MultiHeadLatentAttention
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.norm import RMSNorm
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.section import Seen


class Block(nn.Module):
    """One layer; dense or with experts, as the config says for its index."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MixtureOfExperts(config, index)
            if config.is_moe_layer(index)
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        x_BSD: Tensor,
        rotation: ops.Rotation,
        *,
        past: Seen | None = None,
        record: RoutingRecord | None = None,
    ) -> Tensor:
        """Apply attention and feed-forward, each on the normed input, added to the residual stream."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotation, past)
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MixtureOfExperts):
            return x_BSD + self.mlp(normed_BSD, record)  # V3 Fig. 2
        return x_BSD + self.mlp(normed_BSD)
