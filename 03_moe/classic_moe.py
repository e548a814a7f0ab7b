"""How did the first mixtures of experts send tokens to their experts, and what happened to those that found no place?

Run:       python classic_moe.py
Notebook:  classic_moe.ipynb
Source:    GShard (arXiv:2006.16668), Switch (arXiv:2101.03961); expert choice (arXiv:2202.09368);
           hash layers (arXiv:2106.04426)
Letters:   N tokens, D model width, E experts, A activated per token, F expert hidden, P places of an expert (capacity)

The hardware wanted fixed shapes, so every expert got P places. A token that comes to a full expert is dropped: its row
of the output is zero and only the residual carries it on. Two ways out of the trouble mark the ends of a scale: let the
experts choose (balance for free, but a token's fate depends on later tokens), or let nobody choose (hashing).
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from expert_routing import (
    choose_top_experts,
    numeric_gradient,
    softmax_gate_backward,
    softmax_gate_forward,
    softmax_scores_backward,
    softmax_scores_forward,
)


@dataclass(frozen=True)
class ClassicMoE:
    """A softmax router and E experts down(relu(up x)), stacked."""

    weight: np.ndarray  # [E, D], the router
    up_proj: np.ndarray  # [E, F, D]
    down_proj: np.ndarray  # [E, D, F]

    @classmethod
    def init(cls, rng: np.random.Generator, n_experts: int, width: int, hidden: int) -> "ClassicMoE":
        """Draw every matrix with standard deviation 1/sqrt(inputs)."""
        return cls(
            rng.normal(size=(n_experts, width)) / width**0.5,
            rng.normal(size=(n_experts, hidden, width)) / width**0.5,
            rng.normal(size=(n_experts, width, hidden)) / hidden**0.5,
        )


def expert_places(n_tokens: int, n_experts: int, n_activated: int, capacity_factor: float) -> int:
    """P = ceil(capacity_factor * N * A / E): the average load, times some room.

    Source: arXiv:2101.03961, section 2.2.
    """
    return max(1, ceil(capacity_factor * n_tokens * n_activated / n_experts))


def assign_places(index_NA: np.ndarray, n_experts: int, places: int) -> np.ndarray:
    """Queue the tokens before their experts; return the place of each choice, -1 where the expert was full.

    All first choices queue before any second choice, in the order of the tokens, as in GShard.
    """
    n_tokens, n_activated = index_NA.shape
    queue = index_NA.T.ravel()
    arrived = np.cumsum(queue[:, None] == np.arange(n_experts), axis=0)
    place = arrived[np.arange(len(queue)), queue] - 1
    return np.where(place < places, place, -1).reshape(n_activated, n_tokens).T


def relu_experts_forward(x_EPD: np.ndarray, weights: ClassicMoE) -> tuple[np.ndarray, tuple]:
    """Run every expert on its own places: y = W_down relu(W_up x)."""
    hidden_EPF = np.maximum(x_EPD @ weights.up_proj.swapaxes(1, 2), 0)
    return hidden_EPF @ weights.down_proj.swapaxes(1, 2), (x_EPD, hidden_EPF, weights)


def relu_experts_backward(dy_EPD: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx_EPD, dup_proj, ddown_proj)."""
    x_EPD, hidden_EPF, weights = cache
    dhidden_EPF = (dy_EPD @ weights.down_proj) * (hidden_EPF > 0)
    return dhidden_EPF @ weights.up_proj, dhidden_EPF.swapaxes(1, 2) @ x_EPD, dy_EPD.swapaxes(1, 2) @ hidden_EPF


def dispatch_combine_forward(x_ND, index_NA, gate_NA, weights: ClassicMoE, places: int) -> tuple[np.ndarray, tuple]:
    """Copy tokens into the places of their experts, run the experts, and add up what comes back, times the gates.

    Works for any routing: learned, hashed or uniform. A dropped choice adds nothing.
    """
    place_NA = assign_places(index_NA, len(weights.up_proj), places)
    kept_NA = place_NA >= 0
    token, _ = np.nonzero(kept_NA)
    buffer_EPD = np.zeros((len(weights.up_proj), places, x_ND.shape[1]), dtype=x_ND.dtype)
    buffer_EPD[index_NA[kept_NA], place_NA[kept_NA]] = x_ND[token]
    out_EPD, expert_cache = relu_experts_forward(buffer_EPD, weights)
    answer_NAD = out_EPD[index_NA, place_NA] * kept_NA[..., None]  # place -1 would read the last place of the expert
    return np.einsum("na,nad->nd", gate_NA, answer_NAD), (index_NA, place_NA, gate_NA, answer_NAD, expert_cache)


def dispatch_combine_backward(dy_ND: np.ndarray, cache: tuple) -> tuple[np.ndarray, ...]:
    """Return (dx_ND, dgate_NA, dup_proj, ddown_proj); a dropped choice gets no gradient anywhere."""
    index_NA, place_NA, gate_NA, answer_NAD, expert_cache = cache
    kept_NA = place_NA >= 0
    token, _ = np.nonzero(kept_NA)
    dgate_NA = np.einsum("nd,nad->na", dy_ND, answer_NAD)
    dout_EPD = np.zeros_like(expert_cache[0])
    dout_EPD[index_NA[kept_NA], place_NA[kept_NA]] = (gate_NA[..., None] * dy_ND[:, None])[kept_NA]
    dbuffer_EPD, dup_proj, ddown_proj = relu_experts_backward(dout_EPD, expert_cache)
    dx_ND = np.zeros_like(dy_ND)
    np.add.at(dx_ND, token, dbuffer_EPD[index_NA[kept_NA], place_NA[kept_NA]])
    return dx_ND, dgate_NA, dup_proj, ddown_proj


def classic_moe_forward(
    x_ND, weights: ClassicMoE, n_activated: int, capacity_factor: float
) -> tuple[np.ndarray, tuple]:
    """The Switch / GShard layer: softmax gate, places, experts, combine (the residual is the caller's)."""
    routing, gate_cache = softmax_gate_forward(x_ND, weights.weight, n_activated)
    places = expert_places(len(x_ND), len(weights.weight), n_activated, capacity_factor)
    y_ND, cache = dispatch_combine_forward(x_ND, *routing, weights, places)
    return y_ND, (gate_cache, cache)


def classic_moe_backward(dy_ND: np.ndarray, cache: tuple) -> tuple[np.ndarray, ClassicMoE]:
    """Return (dx_ND, the gradient of every weight)."""
    gate_cache, dispatch_cache = cache
    dx_ND, dgate_NA, dup_proj, ddown_proj = dispatch_combine_backward(dy_ND, dispatch_cache)
    dx_gate_ND, dweight = softmax_gate_backward(dgate_NA, gate_cache)
    return dx_ND + dx_gate_ND, ClassicMoE(dweight, dup_proj, ddown_proj)


def dropped_share(index_NA: np.ndarray, n_experts: int, places: int) -> float:
    """Share of all choices that found their expert full."""
    return float((assign_places(index_NA, n_experts, places) < 0).mean())


def expert_choice_forward(x_ND: np.ndarray, weights: ClassicMoE, places: int) -> tuple[np.ndarray, tuple]:
    """One end of the scale: every expert takes the `places` tokens it likes best, so all loads are equal.

    A token may be taken by many experts or by none, and which it is depends on tokens that come after it: usable in an
    encoder, a leak in a language model.
    """
    score_NE, score_cache = softmax_scores_forward(x_ND @ weights.weight.T)
    token_EP = choose_top_experts(score_NE.T, places)  # the same choice, with the roles exchanged
    gate_EP = np.take_along_axis(score_NE.T, token_EP, axis=-1)
    out_EPD, expert_cache = relu_experts_forward(x_ND[token_EP], weights)
    y_ND = np.zeros_like(x_ND)
    np.add.at(y_ND, token_EP, gate_EP[..., None] * out_EPD)
    return y_ND, (x_ND, weights, token_EP, gate_EP, out_EPD, score_cache, expert_cache)


def expert_choice_backward(dy_ND: np.ndarray, cache: tuple) -> tuple[np.ndarray, ClassicMoE]:
    """Return (dx_ND, the gradient of every weight)."""
    x_ND, weights, token_EP, gate_EP, out_EPD, score_cache, expert_cache = cache
    dtaken_EPD = dy_ND[token_EP]
    dpicked_EPD, dup_proj, ddown_proj = relu_experts_backward(gate_EP[..., None] * dtaken_EPD, expert_cache)
    dscore_EN = np.zeros_like(score_cache.T)
    np.put_along_axis(dscore_EN, token_EP, (dtaken_EPD * out_EPD).sum(axis=-1), axis=-1)
    dlogits_NE = softmax_scores_backward(dscore_EN.T, score_cache)
    dx_ND = dlogits_NE @ weights.weight
    np.add.at(dx_ND, token_EP, dpicked_EPD)
    return dx_ND, ClassicMoE(dlogits_NE.T @ x_ND, dup_proj, ddown_proj)


def route_by_hash(token_N: np.ndarray, n_experts: int, n_activated: int) -> np.ndarray:
    """The other end: the token's own number decides, for ever. Nothing to learn, nothing to collapse."""
    mixed_N = (np.asarray(token_N, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)  # Knuth's multiplier
    first_N = (mixed_N >> np.uint64(7)).astype(np.int64) % n_experts
    return (first_N[:, None] + np.arange(n_activated)) % n_experts


def route_uniformly(n_tokens: int, n_experts: int, n_activated: int) -> np.ndarray:
    """Deal tokens out like cards: loads differ by at most one, and no expert can know anything."""
    return (np.arange(n_tokens * n_activated) % n_experts).reshape(n_tokens, n_activated)


def main() -> None:
    """Fill three experts by hand, then check the layer's gradients."""
    index = np.array([[0, 1], [0, 2], [0, 1], [1, 0]])
    places = expert_places(4, 3, 2, 1.0)
    print(f"4 tokens x 2 choices over 3 experts: ceil(8/3) = {places} places each")
    print("  choices of each token ", index.tolist())
    print("  place, -1 when dropped", assign_places(index, 3, places).tolist())
    print(
        f"  first choices come first: the 4th token finds expert 0 full; dropped {dropped_share(index, 3, places):.1%}"
    )

    rng = np.random.default_rng(0)
    x, pull, weights = rng.normal(size=(11, 3)), rng.normal(size=(11, 3)), ClassicMoE.init(rng, 5, 3, 7)
    for name, forward, backward in (
        ("classic", lambda: classic_moe_forward(x, weights, 2, 1.0), classic_moe_backward),
        ("expert choice", lambda: expert_choice_forward(x, weights, 4), expert_choice_backward),
    ):
        _, grads = backward(pull, forward()[1])
        for field in ("weight", "up_proj", "down_proj"):
            array = getattr(weights, field)
            numeric = numeric_gradient(lambda forward=forward: float((forward()[0] * pull).sum()), array)
            error = np.abs(getattr(grads, field) - numeric).max() / np.abs(numeric).max()
            print(f"{name}: largest error of d({field}) {error:.0e}")


if __name__ == "__main__":
    main()
