"""The whole expert layer of DeepSeek-V3: how does a token find 8 of 256 experts, and the gradient its way back?

Run:       python deepseek_moe.py
Notebook:  deepseek_moe.ipynb
Source:    DeepSeek-V3 (arXiv:2412.19437) Eqs. (12) to (16), section 2.1.2 for the groups; released inference code
Letters:   N tokens, D model width, E routed experts, G groups, M experts of a group, A activated, F expert hidden

The order matters at every step: score with a sigmoid; add the bias, to choose only; keep the best groups, each judged
by its two best; choose the A best; weigh them by their scores *without* the bias, made to sum to one, then scaled; add
the shared expert, which has no gate and no scale. Tokens are sorted by expert, so that each expert sees one contiguous
slice. Every function keeps the dtype of its input: chapter 06 trains in float32 with this very code.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from expert_routing import (
    Routing,
    choose_top_experts,
    count_load,
    normalize_gates_backward,
    normalize_gates_forward,
    numeric_gradient,
    scatter_to_experts,
    sigmoid,
    sigmoid_scores_backward,
    sigmoid_scores_forward,
)
from fine_grained_experts import SwiGLUExperts
from load_balancing import sequence_balance_backward, sequence_balance_forward
from loss_free_balancing import update_bias


@dataclass(frozen=True)
class RouterConfig:
    """How to choose, with the released config keys; the defaults are V3's.

    Raises:
        ValueError: the groups do not divide the experts, or cannot hold the experts to be chosen.
    """

    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5

    def __post_init__(self) -> None:
        experts, groups, kept = self.n_routed_experts, self.n_group, self.topk_group
        if groups < 1 or experts % groups:
            raise ValueError(f"n_group={groups} does not divide n_routed_experts={experts}; choose a divisor")
        if not 1 <= kept <= groups:
            raise ValueError(f"topk_group={kept} must be 1 to n_group={groups}")
        room = kept * (experts // groups)
        if not 1 <= self.num_experts_per_tok <= room:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok}, but {kept} groups of {experts // groups} "
                f"hold {room} experts; raise topk_group or choose fewer"
            )
        if self.num_experts_per_tok == 1:
            warnings.warn(
                "num_experts_per_tok=1 with normalised gates: no gradient of the task reaches the router", stacklevel=3
            )


@dataclass(frozen=True)
class GateWeights:
    """The router's matrix [E, D] and its balancing bias [E]: a buffer, moved by `update_bias`, never by a gradient."""

    weight: np.ndarray
    e_score_correction_bias: np.ndarray


@dataclass(frozen=True)
class SharedWeights:
    """The shared experts as they are released: one SwiGLU of hidden width n_shared_experts * F."""

    gate_proj: np.ndarray  # [F, D]
    up_proj: np.ndarray  # [F, D]
    down_proj: np.ndarray  # [D, F]


@dataclass(frozen=True)
class DeepseekMoE:
    """All weights of one layer, grouped and named as in the checkpoint (`mlp.gate.weight`, ...), experts stacked."""

    gate: GateWeights
    experts: SwiGLUExperts
    shared_experts: SharedWeights

    @classmethod
    def init(cls, rng, config: RouterConfig, width: int, hidden: int, n_shared_experts: int = 1) -> "DeepseekMoE":
        """Draw every matrix with standard deviation 1/sqrt(inputs); the bias starts at zero."""
        n = config.n_routed_experts
        shared = SwiGLUExperts.init(rng, 1, width, n_shared_experts * hidden)
        return cls(
            GateWeights(rng.normal(size=(n, width)) / width**0.5, np.zeros(n)),
            SwiGLUExperts.init(rng, n, width, hidden),
            SharedWeights(shared.gate_proj[0], shared.up_proj[0], shared.down_proj[0]),
        )

    def trainable(self) -> dict[str, np.ndarray]:
        """The arrays that an optimiser may change in place, by released name; the bias is not one of them."""
        names = ("gate_proj", "up_proj", "down_proj")
        return {
            "gate.weight": self.gate.weight,
            **{f"experts.{name}": getattr(self.experts, name) for name in names},
            **{f"shared_experts.{name}": getattr(self.shared_experts, name) for name in names},
        }


class MoECache(NamedTuple):
    """What the forward leaves behind; `score_NE` and `load_E` are also what balancing reads."""

    score_NE: np.ndarray
    load_E: np.ndarray
    routing: Routing
    x_ND: np.ndarray
    weights: DeepseekMoE
    inner: tuple


def keep_best_groups(choice_NE: np.ndarray, n_group: int, topk_group: int) -> np.ndarray:
    """Set all experts outside the topk_group best groups to -inf; a group is worth the sum of its two best.

    -inf and not 0: with a negative bias a real candidate may lie below 0. Groups are runs of neighbours, a node each;
    two, because V3 sends a token to at most 4 nodes for 8 experts. A group of one expert is worth that expert.
    """
    grouped_NGM = choice_NE.reshape(len(choice_NE), n_group, -1)
    value_NG = np.sort(grouped_NGM, axis=-1)[..., -2:].sum(axis=-1)
    kept_NG = np.zeros(value_NG.shape, dtype=bool)
    np.put_along_axis(kept_NG, choose_top_experts(value_NG, topk_group), True, axis=-1)
    return np.where(kept_NG[..., None], grouped_NGM, -np.inf).reshape(choice_NE.shape)


def route_tokens_forward(score_NE: np.ndarray, bias_E: np.ndarray, config: RouterConfig) -> tuple[Routing, tuple]:
    """Choose experts by biased score within the best groups; weigh them by the plain score, normalised, then scaled.

        g_i = routed_scaling_factor * s_i / (sum of the chosen s + 1e-20)

    Source: arXiv:2412.19437, Eqs. (13), (14), (16); the scale is the released config's.
    """
    choice_NE = keep_best_groups(score_NE + bias_E, config.n_group, config.topk_group)  # V3 Eq. (16)
    index_NA = choose_top_experts(choice_NE, config.num_experts_per_tok)
    picked_NA = np.take_along_axis(score_NE, index_NA, axis=-1)  # no bias here
    share_NA, share_cache = normalize_gates_forward(picked_NA)  # V3 Eq. (13)
    gate_NA = share_NA * config.routed_scaling_factor
    return Routing(index_NA, gate_NA), (index_NA, share_cache, config)


def route_tokens_backward(dgate_NA: np.ndarray, cache: tuple) -> np.ndarray:
    """ds_i = scale (dg_i - sum_j w_j dg_j) / total for the chosen, w the gates before scaling; 0 for the rest."""
    index_NA, share_cache, config = cache
    dshare_NA = dgate_NA * config.routed_scaling_factor
    dpicked_NA = normalize_gates_backward(dshare_NA, share_cache)
    return scatter_to_experts(dpicked_NA, index_NA, config.n_routed_experts)


def swiglu_slice_forward(x_ND, gate_proj, up_proj, down_proj) -> tuple[np.ndarray, tuple]:
    """Run one expert on its slice: y = W_down (silu(W_gate x) * (W_up x))."""
    gate_NF, up_NF = x_ND @ gate_proj.T, x_ND @ up_proj.T
    sig_NF = sigmoid(gate_NF)
    hidden_NF = gate_NF * sig_NF * up_NF
    return hidden_NF @ down_proj.T, (x_ND, gate_NF, up_NF, sig_NF, hidden_NF, gate_proj, up_proj, down_proj)


def swiglu_slice_backward(dy_ND: np.ndarray, cache: tuple) -> tuple[np.ndarray, ...]:
    """Return (dx_ND, dgate_proj, dup_proj, ddown_proj);  silu'(z) = s(z) (1 + z (1 - s(z)))."""
    x_ND, gate_NF, up_NF, sig_NF, hidden_NF, gate_proj, up_proj, down_proj = cache
    dhidden_NF = dy_ND @ down_proj
    dup_NF = dhidden_NF * gate_NF * sig_NF
    dgate_NF = dhidden_NF * up_NF * sig_NF * (1 + gate_NF * (1 - sig_NF))
    return dgate_NF @ gate_proj + dup_NF @ up_proj, dgate_NF.T @ x_ND, dup_NF.T @ x_ND, dy_ND.T @ hidden_NF


def sort_by_expert(index_NA: np.ndarray, n_experts: int) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Order all N * A choices by expert; return the order and the run of every expert that has any.

    order[r] is the flat number n * A + a of the choice in row r; the sort is stable, so tokens stay in order.
    """
    order = np.argsort(index_NA, axis=None, kind="stable")
    ends = np.cumsum(count_load(index_NA, n_experts))
    starts = np.concatenate(([0], ends[:-1]))
    return order, [(e, slice(a, b)) for e, (a, b) in enumerate(zip(starts, ends)) if b > a]


def routed_experts_forward(x_ND: np.ndarray, routing: Routing, experts: SwiGLUExperts) -> tuple[np.ndarray, tuple]:
    """y = sum over the chosen of g_i FFN_i(x), one matrix product for each expert and not one for each token."""
    order, runs = sort_by_expert(routing.index_NA, len(experts.gate_proj))
    x_sorted = x_ND[order // routing.index_NA.shape[1]]  # a copy of the token for every expert that it visits
    y_sorted, caches = np.empty_like(x_sorted), []
    for e, run in runs:
        y_sorted[run], kept = swiglu_slice_forward(
            x_sorted[run], experts.gate_proj[e], experts.up_proj[e], experts.down_proj[e]
        )
        caches.append(kept)
    answer = np.empty_like(y_sorted)
    answer[order] = y_sorted  # back in the order of the tokens
    answer_NAD = answer.reshape(*routing.index_NA.shape, -1)
    y_ND = (routing.gate_NA[:, None] @ answer_NAD)[:, 0]
    return y_ND, (order, runs, caches, answer_NAD, routing, experts)


def routed_experts_backward(dy_ND: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, SwiGLUExperts]:
    """Return (dx_ND, dgate_NA, dexperts); an expert that nobody visited has a gradient of zero."""
    order, runs, caches, answer_NAD, routing, experts = cache
    dgate_NA = (answer_NAD @ dy_ND[..., None])[..., 0]
    danswer = (routing.gate_NA[..., None] * dy_ND[:, None]).reshape(-1, dy_ND.shape[1])
    dy_sorted = danswer[order]
    dx_sorted = np.empty_like(dy_sorted)
    names = ("gate_proj", "up_proj", "down_proj")
    dexperts = SwiGLUExperts(*(np.zeros(a.shape, a.dtype) for a in (getattr(experts, name) for name in names)))
    for (e, run), kept in zip(runs, caches):
        dx_sorted[run], *dmatrices = swiglu_slice_backward(dy_sorted[run], kept)
        for name, dmatrix in zip(names, dmatrices):
            getattr(dexperts, name)[e] = dmatrix
    dx_choices = np.empty_like(dx_sorted)
    dx_choices[order] = dx_sorted
    return dx_choices.reshape(answer_NAD.shape).sum(axis=1), dgate_NA, dexperts


def deepseek_moe_forward(x_ND: np.ndarray, weights: DeepseekMoE, config: RouterConfig) -> tuple[np.ndarray, MoECache]:
    """y = FFN_shared(x) + sum over the chosen of g_i FFN_i(x); the residual is the caller's.

    Source: arXiv:2412.19437, Eqs. (12) to (16).
    """
    logits_NE = x_ND @ weights.gate.weight.T
    score_NE, score_cache = sigmoid_scores_forward(logits_NE)  # V3 Eq. (15)
    routing, route_cache = route_tokens_forward(score_NE, weights.gate.e_score_correction_bias, config)
    routed_ND, routed_cache = routed_experts_forward(x_ND, routing, weights.experts)
    shared = weights.shared_experts
    shared_ND, shared_cache = swiglu_slice_forward(x_ND, shared.gate_proj, shared.up_proj, shared.down_proj)
    load_E = count_load(routing.index_NA, config.n_routed_experts)
    inner = (score_cache, route_cache, routed_cache, shared_cache)
    return shared_ND + routed_ND, MoECache(score_NE, load_E, routing, x_ND, weights, inner)  # V3 Eq. (12)


def deepseek_moe_backward(dy_ND, cache: MoECache, dscore_NE=None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (dx_ND, the gradients by the names of `trainable`).

    Args:
        dscore_NE: what a balance loss adds to the gradient of the scores, from `sequence_balance_backward`.
    """
    score_cache, route_cache, routed_cache, shared_cache = cache.inner
    dx_ND, dgate_NA, dexperts = routed_experts_backward(dy_ND, routed_cache)
    dscore_total_NE = route_tokens_backward(dgate_NA, route_cache)
    if dscore_NE is not None:
        dscore_total_NE = dscore_total_NE + dscore_NE
    dlogits_NE = sigmoid_scores_backward(dscore_total_NE, score_cache)
    dx_shared_ND, *dshared = swiglu_slice_backward(dy_ND, shared_cache)
    dx_ND = dx_ND + dx_shared_ND + dlogits_NE @ cache.weights.gate.weight
    dexpert_list = [dexperts.gate_proj, dexperts.up_proj, dexperts.down_proj]
    return dx_ND, dict(zip(cache.weights.trainable(), [dlogits_NE.T @ cache.x_ND, *dexpert_list, *dshared]))


def main() -> None:
    """Follow one token through the groups, then check the gradients of the layer with its balance loss."""
    score = np.array([[0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15]])
    bias = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
    config = RouterConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2)
    routing, _ = route_tokens_forward(score, bias, config)
    print("8 experts in 4 groups of 2, keep 2 groups, choose 2 experts, scale 2.5")
    print("  score + bias     ", (score + bias)[0].round(2))
    print("  value of a group ", (score + bias).reshape(4, 2).sum(axis=1).round(2), " so groups 3 and 2 stay")
    print("  experts", routing.index_NA[0], " gates", routing.gate_NA[0], "= 2.5 * [.25 .15] / .40, without the bias")

    rng = np.random.default_rng(0)
    config = RouterConfig(6, 2, 3, 2)
    weights = DeepseekMoE.init(rng, config, width=5, hidden=3)
    x, pull = rng.normal(size=(8, 5)), rng.normal(size=(8, 5))

    def loss() -> float:
        y, cache = deepseek_moe_forward(x, weights, config)
        return float((y * pull).sum()) + sequence_balance_forward(cache.score_NE.reshape(2, 4, 6), 2, 0.5)[0]

    _, cache = deepseek_moe_forward(x, weights, config)
    _, balance_cache = sequence_balance_forward(cache.score_NE.reshape(2, 4, 6), 2, 0.5)
    dscore = sequence_balance_backward(1.0, balance_cache).reshape(8, 6)
    dx, grads = deepseek_moe_backward(pull, cache, dscore)
    for name, array, grad in [("x", x, dx), *((n, a, grads[n]) for n, a in weights.trainable().items())]:
        numeric = numeric_gradient(loss, array)
        print(f"  largest error of d({name}) {np.abs(grad - numeric).max() / np.abs(numeric).max():.0e}")
    print("  loads", cache.load_E, " next bias", update_bias(weights.gate.e_score_correction_bias, cache.load_E, 0.001))


if __name__ == "__main__":
    main()
