"""Multi-token prediction: one module per further token, each a causal step on from the one before.

    h'_i = eh_proj [enorm(Emb(t_{i+k})) ; hnorm(h_i^{k-1})]        h^k = block(h')        P(t_{i+k+1}) = head(norm(h^k))

The released weights put the embedding first; the paper's Eq. (21) writes the hidden state first. h^0 is the main
model's output after its final norm, and h^k is handed on after `shared_head.norm`, as the serving engines run the
released weights. Row i keeps its own position. Embedding and head are the main model's.

Letters: B batch, S positions, D width.
Source: arXiv:2412.19437, Eqs. (21) to (25).
"""

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.block import Block
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.norm import RMSNorm
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.section import Seen


class MultiTokenPredictor(nn.Module):
    """The module of one depth; layer `num_hidden_layers + depth - 1` of a checkpoint."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = Block(config, index)
        self.shared_head_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_BSD: Tensor,
        embedding_BSD: Tensor,
        rotation: ops.Rotation,
        *,
        past: Seen | None = None,
        record: RoutingRecord | None = None,
    ) -> Tensor:
        """Return the normed hidden state of this depth: what the shared head reads and the next depth takes.

        Args:
            hidden_BSD: of depth k - 1 at position i (normed).
            embedding_BSD: of token i + k.
        """
        joined_BSD = self.eh_proj(torch.cat((self.enorm(embedding_BSD), self.hnorm(hidden_BSD)), -1))  # V3 Eq. (21)
        out_BSD = self.block(joined_BSD, rotation, past=past, record=record)
        return self.shared_head_norm(out_BSD)  # V3 Eq. (22)
