"""The mixture of experts: each token through the experts that the router chose, and through the shared ones.

    y = sum_{i chosen} w_i expert_i(x) + shared(x)

Letters: N tokens, D width, E experts, A experts per token, F hidden width.
Source: arXiv:2412.19437, Eq. (12); arXiv:2401.06066.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.recipe import Recipe
from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.router import Router, RoutingRecord


class Exchange(Protocol):
    """Takes tokens to the processes where their experts live, and results back: `parallel/expert_parallel.py`."""

    def __call__(self, run: Callable[..., Tensor], x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor) -> Tensor: ...
    def deliver(self, index_NA: Tensor) -> ops.Delivery: ...


class Experts(HoldsFP8):
    """The routed experts, stacked: gate_up_proj [E, 2F, D] (gate above up), down_proj [E, D, F].

    In FP8 gate and up are two `parts` of a matrix: a block of 128 rows never holds rows of both.
    """

    matrices: ClassVar[Mapping[str, int]] = {"gate_up_proj": 2, "down_proj": 1}
    recipe: Recipe | None = None  # of FP8 training
    exchange: "Exchange | None" = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        experts, width, hidden = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor) -> Tensor:
        """Send every token through its experts and add them up by weight."""
        if self.exchange is None:
            return self.run(x_ND, weight_NA, index_NA)
        if self.recipe is not None and self.recipe.is_as_reported():  # codes travel
            here, delivery = (_local(self.gate_up_proj), _local(self.down_proj)), self.exchange.deliver(index_NA)
            return ops.experts_in_fp8(x_ND, weight_NA, index_NA, *here, self.recipe, delivery)
        return self.exchange(self.run, x_ND, weight_NA, index_NA)

    def run(self, x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor) -> Tensor:
        """Run the experts that are here; `index_NA` counts from the first of them."""
        up_EFD, down_EDF = _local(self.gate_up_proj), _local(self.down_proj)
        if not x_ND.shape[0]:  # of many processes one may have no token: its weights have gradients all the same
            return x_ND + 0 * (up_EFD[:1, :1, :1].sum() + down_EDF[:1, :1, :1].sum() + weight_NA.sum()).to(x_ND.dtype)
        if self.recipe is not None:
            return ops.experts_in_fp8(x_ND, weight_NA, index_NA, up_EFD, down_EDF, self.recipe)
        scales = self.scales("gate_up_proj"), self.scales("down_proj")
        return ops.run_experts(x_ND, weight_NA, index_NA, up_EFD, down_EDF, *scales)


def _local(weight: Tensor) -> Tensor:
    """The part of a weight that is here."""
    part = getattr(weight, "to_local", None)
    return weight if part is None else part()


class MixtureOfExperts(nn.Module):
    """The feed-forward half of an MoE layer; `layer` is its key in a record."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            self.shared_experts = SwiGLU(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BSD: Tensor, record: RoutingRecord | None = None) -> Tensor:
        """Apply routed and shared experts; tell the record, if there is one, where the tokens went."""
        x_ND = x_BSD.flatten(0, 1)
        weight_NA, index_NA, score_NE = self.gate(x_ND, None if record is None else record.replay.get(self.layer))
        if record is not None:
            record.note(self.layer, index_NA, score_NE.unflatten(0, x_BSD.shape[:2]))
        y_BSD = self.experts(x_ND, weight_NA, index_NA).view_as(x_BSD)
        return y_BSD if self.shared_experts is None else y_BSD + self.shared_experts(x_BSD)  # V3 Eq. (12)
