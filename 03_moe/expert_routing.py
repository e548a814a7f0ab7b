"""Which experts should a token visit, and how does the router learn from a choice that cannot be differentiated?

Run:       python expert_routing.py
Notebook:  expert_routing.ipynb
Source:    DeepSeek-V3 (arXiv:2412.19437) Eqs. (13) to (15); the softmax gate: DeepSeek-V2 (arXiv:2405.04434)
Letters:   N tokens, D model width, E routed experts, A experts activated per token

A router is one linear layer and a choice. The choice of the A best of E is flat almost everywhere: no gradient passes.
All that the router ever learns from the task comes through the *value* of the scores that were chosen, the gate.
"""

import warnings
from typing import NamedTuple

import numpy as np


class Routing(NamedTuple):
    """Where every token goes, and with which weight its experts answer."""

    index_NA: np.ndarray  # experts, best first; no gradient
    gate_NA: np.ndarray  # the g of the papers


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)) without overflow on either side, in the dtype of x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def softmax_scores_forward(logits_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score experts against each other: s = exp(l) / sum_j exp(l_j); one rises only if others fall."""
    raised = np.exp(logits_NE - logits_NE.max(axis=-1, keepdims=True))
    score_NE = raised / raised.sum(axis=-1, keepdims=True)
    return score_NE, score_NE


def softmax_scores_backward(dscore_NE: np.ndarray, score_NE: np.ndarray) -> np.ndarray:
    """dl_i = s_i (ds_i - sum_j s_j ds_j): one chosen score sends a gradient to *every* logit of the token."""
    return score_NE * (dscore_NE - (score_NE * dscore_NE).sum(axis=-1, keepdims=True))


def sigmoid_scores_forward(logits_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score every expert by itself: s = 1 / (1 + exp(-l)), a yes or no for each."""
    score_NE = sigmoid(logits_NE)  # V3 Eq. (15)
    return score_NE, score_NE


def sigmoid_scores_backward(dscore_NE: np.ndarray, score_NE: np.ndarray) -> np.ndarray:
    """dl_i = ds_i s_i (1 - s_i): an expert that was not chosen hears nothing."""
    return dscore_NE * score_NE * (1 - score_NE)


def choose_top_experts(choice_NE: np.ndarray, n_activated: int) -> np.ndarray:
    """Pick the n_activated largest of every row, best first; a tie goes to the lower index.

    Raises:
        ValueError: more experts are asked for than there are.
    """
    n_experts = choice_NE.shape[-1]
    if not 1 <= n_activated <= n_experts:
        raise ValueError(f"cannot choose {n_activated} of {n_experts} experts; take 1 to {n_experts}")
    return np.argsort(-choice_NE, axis=-1, kind="stable")[..., :n_activated]  # V3 Eq. (14)


def count_load(index_NA: np.ndarray, n_experts: int) -> np.ndarray:
    """Count the tokens that every expert was chosen by, before any capacity rule: integers that sum to N * A."""
    return np.bincount(index_NA.ravel(), minlength=n_experts)


def scatter_to_experts(value_NA: np.ndarray, index_NA: np.ndarray, n_experts: int) -> np.ndarray:
    """Put the value of each chosen expert in its column of a [N, E] array of zeros: the backward of picking."""
    full_NE = np.zeros((*value_NA.shape[:-1], n_experts), dtype=value_NA.dtype)
    np.put_along_axis(full_NE, index_NA, value_NA, axis=-1)
    return full_NE


def normalize_gates_forward(picked_NA: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Make the gates of a token sum to one: g_i = s_i / (sum of the chosen s).

    The 1e-20 is the released code's: scores that all underflowed to zero give zero gates, not NaN.
    """
    total_N1 = picked_NA.sum(axis=-1, keepdims=True) + 1e-20
    gate_NA = picked_NA / total_N1  # V3 Eq. (13)
    return gate_NA, (gate_NA, total_N1)


def normalize_gates_backward(dgate_NA: np.ndarray, cache: tuple) -> np.ndarray:
    """ds_i = (dg_i - sum_j g_j dg_j) / total: only the *difference* from the average expert of the token teaches."""
    gate_NA, total_N1 = cache
    return (dgate_NA - (gate_NA * dgate_NA).sum(axis=-1, keepdims=True)) / total_N1


def softmax_gate_forward(x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int) -> tuple[Routing, tuple]:
    """Route as Switch and DeepSeek-V2 do: softmax over all experts, gates are the raw chosen probabilities.

    Source: arXiv:2405.04434, section 2.2.1.
    """
    score_NE, score_cache = softmax_scores_forward(x_ND @ weight_ED.T)
    index_NA = choose_top_experts(score_NE, n_activated)
    gate_NA = np.take_along_axis(score_NE, index_NA, axis=-1)
    return Routing(index_NA, gate_NA), (x_ND, weight_ED, index_NA, score_cache)


def softmax_gate_backward(dgate_NA: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return (dx_ND, dweight_ED)."""
    x_ND, weight_ED, index_NA, score_cache = cache
    dscore_NE = scatter_to_experts(dgate_NA, index_NA, len(weight_ED))
    dlogits_NE = softmax_scores_backward(dscore_NE, score_cache)
    return dlogits_NE @ weight_ED, dlogits_NE.T @ x_ND


def sigmoid_gate_forward(x_ND: np.ndarray, weight_ED: np.ndarray, n_activated: int) -> tuple[Routing, tuple]:
    """Route as DeepSeek-V3 does, before any bias or group: sigmoid scores, the chosen ones made to sum to one.

    Warns when n_activated is 1: the one gate is then the constant 1, and the task teaches the router nothing.
    Source: arXiv:2412.19437, Eqs. (13) to (15).
    """
    if n_activated == 1:
        warnings.warn(
            "one expert with a normalised gate: the gate is always 1 and no gradient reaches the router; "
            "activate 2 or more, or use softmax_gate_forward",
            stacklevel=2,
        )
    score_NE, score_cache = sigmoid_scores_forward(x_ND @ weight_ED.T)
    index_NA = choose_top_experts(score_NE, n_activated)
    gate_NA, gate_cache = normalize_gates_forward(np.take_along_axis(score_NE, index_NA, axis=-1))
    return Routing(index_NA, gate_NA), (x_ND, weight_ED, index_NA, score_cache, gate_cache)


def sigmoid_gate_backward(dgate_NA: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return (dx_ND, dweight_ED)."""
    x_ND, weight_ED, index_NA, score_cache, gate_cache = cache
    dpicked_NA = normalize_gates_backward(dgate_NA, gate_cache)
    dlogits_NE = sigmoid_scores_backward(scatter_to_experts(dpicked_NA, index_NA, len(weight_ED)), score_cache)
    return dlogits_NE @ weight_ED, dlogits_NE.T @ x_ND


def numeric_gradient(loss, array: np.ndarray, step: float = 6e-6) -> np.ndarray:
    """Differentiate loss() by every element of `array` with central differences (for the chapter's `main`s)."""
    gradient = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        kept, sides = array[at], []
        for move in (step, -step):
            array[at] = kept + move
            sides.append(loss())
        array[at] = kept
        gradient[at] = (sides[0] - sides[1]) / (2 * step)
    return gradient


def main() -> None:
    """Route one token by hand, then hold the router's gradient to central differences."""
    logits = np.log([[4.0, 2.0, 1.0, 1.0]])
    print("one token, four experts, logits = log [4 2 1 1], two activated")
    for name, scores in (("softmax", softmax_scores_forward), ("sigmoid", sigmoid_scores_forward)):
        score = scores(logits)[0]
        index = choose_top_experts(score, 2)
        picked = np.take_along_axis(score, index, axis=-1)
        gate = normalize_gates_forward(picked)[0]
        print(
            f"  {name}  scores {score[0].round(4)}  experts {index[0]}  raw {picked[0]}  normalised {gate[0].round(4)}"
        )
    print("  by hand: softmax 4/8 2/8 1/8 1/8; sigmoid 4/5 2/3 1/2 1/2, normalised 6/11 and 5/11")

    rng = np.random.default_rng(0)
    x, weight, pull = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), rng.normal(size=(5, 2))
    gates = (
        ("softmax", softmax_gate_forward, softmax_gate_backward),
        ("sigmoid", sigmoid_gate_forward, sigmoid_gate_backward),
    )
    for name, forward, backward in gates:
        _, dweight = backward(pull, forward(x, weight, 2)[1])
        numeric = numeric_gradient(
            lambda forward=forward: float((forward(x, weight, 2)[0].gate_NA * pull).sum()), weight
        )
        print(f"{name} gate: largest error of d(weight) {np.abs(dweight - numeric).max() / np.abs(numeric).max():.0e}")


if __name__ == "__main__":
    main()
