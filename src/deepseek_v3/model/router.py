"""The router: which experts a token goes to, and with what weight.

    s = sigmoid(W x)      choose by  s + bias,  within the best groups      weight by  s  alone, normalised, then scaled

The bias only picks experts: it has no gradient, and the weights never see it. V2's router (softmax, no bias, groups by
their best expert, weights not normalised) is here too.

Letters: N tokens, D width, E experts, G groups, A experts per token.
Source: arXiv:2412.19437, Eqs. (12) to (20); arXiv:2405.04434, section 2.2.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.exact import KeepsExact


class RoutingRecord:
    """What the routers of one forward pass did, by index of the layer; MTP module k is layer num_hidden_layers + k - 1.

    A layer that runs twice, because its activations are computed again in the backward pass, counts once.

    Attributes:
        counts: tokens sent to each expert, int64 [E].
        balance_losses: the sequence-wise balance loss with alpha = 1, a scalar with gradient.
        choices: expert indices [N, A].
        replay: what the routers shall choose, expert indices [N, A]; a layer that is not in it chooses itself.
        add: adds up over the processes that read the other sections of the same rows; None where rows are whole.
    """

    def __init__(self, replay: dict[int, Tensor] | None = None) -> None:
        """Begin; no dataclass, for FSDP hands on a copy of one that holds tensors with gradients."""
        self.counts: dict[int, Tensor] = {}
        self.balance_losses: dict[int, Tensor] = {}
        self.choices: dict[int, Tensor] = {}
        self.replay = replay or {}
        self.add: Callable[[Tensor], Tensor] | None = None

    def note(self, layer: int, index_NA: Tensor, score_BSE: Tensor) -> None:
        """Note a layer's choice and scores.

        Raises:
            ValueError: the layer has noted another choice: a record is of one forward pass.
        """
        # recomputed too: its tensors are waited for
        loss = sequence_balance_loss(score_BSE, index_NA.shape[1], self.add)
        if layer not in self.counts:
            self.counts[layer] = torch.bincount(index_NA.flatten(), minlength=score_BSE.shape[-1])
            self.balance_losses[layer], self.choices[layer] = loss, index_NA
        elif not torch.equal(self.choices[layer], index_NA):
            raise ValueError(f"layer {layer} has routed other tokens into this record; take a new one a forward pass")


class Router(KeepsExact):
    """The gate of one MoE layer; parameters `weight` [E, D] and the FP32 buffer `e_score_correction_bias` [E]."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.per_token, self.groups, self.kept_groups = config.num_experts_per_tok, config.n_group, config.topk_group
        self.sigmoid, self.normalize = config.scoring_func == "sigmoid", config.norm_topk_prob
        self.grouped = config.topk_method != "greedy" and config.n_group > 1
        self.scaling = config.routed_scaling_factor
        if self.sigmoid:
            self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def exact(self) -> Iterable[Tensor]:
        """The bias stays in FP32: in BF16 its steps of 0.001 would vanish."""
        return (self.e_score_correction_bias,) if self.sigmoid else ()

    def forward(self, x_ND: Tensor, chosen_NA: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Route; returns weights [N, A] and scores [N, E] in FP32 (or FP64), and indices [N, A].

        Args:
            chosen_NA: expert indices to take instead of choosing; weights still follow the scores.
        """
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = ops.linear(x_ND.to(dtype), self.weight.to(dtype))
        score_NE = logits_NE.sigmoid() if self.sigmoid else logits_NE.softmax(-1)  # V3 Eq. (15)
        index_NA = self.choose_experts(score_NE.detach()) if chosen_NA is None else chosen_NA
        weight_NA = score_NE.gather(1, index_NA)  # the raw score: the bias must not leak in here
        if self.normalize:
            weight_NA = weight_NA / (weight_NA.sum(-1, keepdim=True) + 1e-20)  # V3 Eq. (13)
        return weight_NA * self.scaling, index_NA, score_NE

    def choose_experts(self, score_NE: Tensor) -> Tensor:
        """Pick the top A by biased score within the best groups."""
        bias_E = self.e_score_correction_bias if self.sigmoid else None
        groups, kept = (self.groups, self.kept_groups) if self.grouped else (1, 1)
        return ops.choose_experts(score_NE, bias_E, self.per_token, groups, kept, best_two=self.sigmoid)


def sequence_balance_loss(score_BSE: Tensor, per_token: int, add: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Average over sequences of sum_i f_i P_i: alpha = 1, and 1 exactly when the routing is uniform.

        f_i = E / (A T) * #{t : i in TopA(s_t)}        P_i = mean_t s_it / sum_j s_jt

    f counts the raw scores' top A (no bias, no groups) and carries no gradient; P does.

    Args:
        add: adds up over the processes that read the other sections of these sequences; what is returned is then this
            process's share of the loss.
    Source: arXiv:2412.19437, Eqs. (17) to (20).
    """
    experts, length = score_BSE.shape[-1], score_BSE.shape[1]
    top_BSA = score_BSE.detach().topk(per_token, -1, sorted=False).indices
    count_BE = torch.zeros_like(score_BSE[:, 0]).scatter_add_(
        1, top_BSA.flatten(1), score_BSE.new_ones(()).expand(top_BSA.flatten(1).shape)
    )
    probability_BE = (score_BSE / score_BSE.sum(-1, keepdim=True)).mean(1)  # V3 Eq. (19), V3 Eq. (20)
    if add is not None:
        count_BE = add(count_BE)
        whole = round(float(count_BE[0].sum()) / per_token)
        probability_BE, length = probability_BE * (length / whole), whole
    frequency_BE = count_BE.detach() * (experts / (per_token * length))  # V3 Eq. (18)
    return (frequency_BE * probability_BE).sum(-1).mean()  # V3 Eq. (17)
