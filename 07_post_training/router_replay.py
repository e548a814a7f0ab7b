"""Router replay: the sampler and the trainer are one model, and still send tokens to different experts.

Run it:    python router_replay.py
Notebook:  router_replay.ipynb
Source:    rollout routing replay: arXiv:2510.11370; "keep routing" in the training of DeepSeek-V3.2: arXiv:2512.02556
           (its wording UNVERIFIED, taken from summaries). The router: arXiv:2412.19437, Eqs. (13) to (15), no groups.
Letters:   N tokens, D width, E experts, A activated, F hidden width of an expert, V vocabulary.

Answers are written by an engine in low precision and learned from in high precision. Almost everywhere that is a small
error in a smooth function. The choice of the A best experts is not smooth: two scores that nearly tie change places,
and the token is computed by other weights. The ratio pi / pi_old then compares two networks. Replay takes the *choice*
of the sampler into the trainer and computes the gates again, from today's scores: they must carry the gradient.
"""

from typing import NamedTuple

import numpy as np
from token_policy import log_softmax


class MoeWeights(NamedTuple):
    """A residual layer of experts with a head: logits = W_head (x + sum_a g_a W2_a tanh(W1_a x))."""

    router_ED: np.ndarray
    up_EFD: np.ndarray
    down_EDF: np.ndarray
    head_VD: np.ndarray

    @classmethod
    def init(cls, rng: np.random.Generator, D: int = 16, E: int = 8, F: int = 16, V: int = 13) -> "MoeWeights":
        """Draw weights of the usual scale."""
        draw = lambda *shape: rng.standard_normal(shape) / np.sqrt(shape[-1])  # noqa: E731
        return cls(draw(E, D), 2 * draw(E, F, D), 2 * draw(E, D, F), draw(V, D))


def round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """Keep `bits` bits after the leading one, round to nearest even: 23 is FP32, 7 is BF16, 3 the mantissa of E4M3."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2 ** (bits + 1)), exponent - bits - 1)


def round_weights(weights: MoeWeights, bits: int) -> MoeWeights:
    """Round every array of the layer, as a sampler does that keeps its weights in fewer bits."""
    return MoeWeights(*(round_mantissa(w, bits) for w in weights))


def choose_experts(weights: MoeWeights, x_ND: np.ndarray, n_activated: int = 2) -> np.ndarray:
    """Pick the best experts of every token, best first."""
    return np.argsort(-(x_ND @ weights.router_ED.T), axis=-1, kind="stable")[:, :n_activated]


def recompute_gates_forward(router_ED: np.ndarray, x_ND: np.ndarray, index_NA: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Weigh *given* experts by today's scores: g_a = s_a / sum_chosen s,  s = sigmoid(x W_r)."""
    logit_NA = np.einsum("nd,nad->na", x_ND, router_ED[index_NA])
    score_NA = 1 / (1 + np.exp(-logit_NA))
    total_N1 = score_NA.sum(axis=1, keepdims=True)
    return score_NA / total_N1, (router_ED, x_ND, index_NA, score_NA, total_N1)


def recompute_gates_backward(dgate_NA: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return (drouter_ED, dx_ND): ds = (dg - sum g dg) / sum s, dlogit = ds s (1 - s)."""
    router_ED, x_ND, index_NA, score_NA, total_N1 = cache
    gate_NA = score_NA / total_N1
    dscore_NA = (dgate_NA - (gate_NA * dgate_NA).sum(axis=1, keepdims=True)) / total_N1
    dlogit_NA = dscore_NA * score_NA * (1 - score_NA)
    drouter_ED = np.zeros_like(router_ED)
    np.add.at(drouter_ED, index_NA, dlogit_NA[..., None] * x_ND[:, None])
    return drouter_ED, np.einsum("na,nad->nd", dlogit_NA, router_ED[index_NA])


def moe_forward(
    weights: MoeWeights, x_ND: np.ndarray, replay_NA: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Compute logits through the experts that this model chooses, or through those that are replayed.

    Args:
        replay_NA: the choice of the sampler; gates are recomputed for it.
    Returns:
        logits_NV, the choice index_NA, the cache.
    """
    index_NA = choose_experts(weights, x_ND) if replay_NA is None else replay_NA
    gate_NA, gate_cache = recompute_gates_forward(weights.router_ED, x_ND, index_NA)
    hidden_NAF = np.tanh(np.einsum("nd,nafd->naf", x_ND, weights.up_EFD[index_NA]))
    out_NAD = np.einsum("naf,nadf->nad", hidden_NAF, weights.down_EDF[index_NA])
    y_ND = x_ND + np.einsum("na,nad->nd", gate_NA, out_NAD)
    cache = weights, x_ND, index_NA, gate_NA, gate_cache, hidden_NAF, out_NAD, y_ND
    return y_ND @ weights.head_VD.T, index_NA, cache


def moe_backward(dlogits_NV: np.ndarray, cache: tuple) -> MoeWeights:
    """Return the gradients; the choice has none, the gates carry what the router learns."""
    weights, x_ND, index_NA, gate_NA, gate_cache, hidden_NAF, out_NAD, y_ND = cache
    dy_ND = dlogits_NV @ weights.head_VD
    dgate_NA = np.einsum("nd,nad->na", dy_ND, out_NAD)
    drouter_ED, _ = recompute_gates_backward(dgate_NA, gate_cache)
    dout_NAD = gate_NA[..., None] * dy_ND[:, None]
    dinner_NAF = np.einsum("nad,nadf->naf", dout_NAD, weights.down_EDF[index_NA]) * (1 - hidden_NAF**2)
    dup_EFD, ddown_EDF = np.zeros_like(weights.up_EFD), np.zeros_like(weights.down_EDF)
    np.add.at(ddown_EDF, index_NA, dout_NAD[..., None] * hidden_NAF[:, :, None, :])
    np.add.at(dup_EFD, index_NA, dinner_NAF[..., None] * x_ND[:, None, None, :])
    return MoeWeights(drouter_ED, dup_EFD, ddown_EDF, dlogits_NV.T @ y_ND)


def find_rerouted(index_NA: np.ndarray, other_NA: np.ndarray) -> np.ndarray:
    """Say which tokens two runs send to different *sets* of experts; the order within a set is no difference."""
    return (np.sort(index_NA, axis=1) != np.sort(other_NA, axis=1)).any(axis=1)


class Mismatch(NamedTuple):
    """How sampler and trainer differ on the tokens that the sampler wrote."""

    rerouted_N: np.ndarray  # True for a token that the trainer sends to other experts
    ratio_N: np.ndarray  # pi_trainer / pi_sampler of each written token; 1 is what GRPO takes for granted


def measure_mismatch(
    rng: np.random.Generator, weights: MoeWeights, sampler: MoeWeights, x_ND: np.ndarray, *, replay: bool
) -> Mismatch:
    """Let the sampler write one token for each row, and ask the trainer how likely it was."""
    logits_NV, index_NA, _ = moe_forward(sampler, x_ND)
    logp_NV = log_softmax(logits_NV)
    token_N = (logp_NV + rng.gumbel(size=logp_NV.shape)).argmax(axis=1)
    own_NV, own_NA, _ = moe_forward(weights, x_ND, index_NA if replay else None)
    rows = np.arange(len(token_N))
    return Mismatch(
        find_rerouted(index_NA, own_NA), np.exp(log_softmax(own_NV)[rows, token_N] - logp_NV[rows, token_N])
    )


def truncated_weights(ratio_N: np.ndarray, most: float = 2.0) -> np.ndarray:
    """Correct what mismatch is left: weigh tokens by min(pi_trainer / pi_sampler, most), constants for the gradient."""
    return np.minimum(ratio_N, most)


def main() -> None:
    """Count the tokens that change experts by precision, and what that does to the ratio, with and without replay."""
    rng = np.random.default_rng(0)
    weights, x_ND = MoeWeights.init(rng), rng.standard_normal((8_000, 16))
    print("sampler's mantissa   other experts   mean |log ratio|   of rerouted tokens   all and these, with replay")
    for bits, name in ((23, "FP32"), (10, "FP16"), (7, "BF16"), (3, "E4M3")):
        sampler, draws = round_weights(weights, bits), (np.random.default_rng(bits) for _ in range(2))
        own, replayed = (measure_mismatch(d, weights, sampler, x_ND, replay=r) for d, r in zip(draws, (False, True)))
        moved = own.rerouted_N
        spread, calm = (np.abs(np.log(m.ratio_N)) for m in (own, replayed))
        worst = [f"{x[moved].mean():8.1e}" if moved.any() else "      --" for x in (spread, calm)]
        print(
            f"  {bits:>2} bits ({name}) {moved.mean():13.2%} {spread.mean():15.1e} {worst[0]:>19} "
            f"{calm.mean():20.1e} {worst[1]}"
        )
    sampler = round_weights(weights, 3)
    _, index_NA, _ = moe_forward(sampler, x_ND)
    logits_NV, _, cache = moe_forward(weights, x_ND, index_NA)
    router = moe_backward(rng.standard_normal(logits_NV.shape), cache).router_ED
    print(f"choice replayed, gates recomputed: the router still learns, mean |gradient| {np.abs(router).mean():.2f}")


if __name__ == "__main__":
    main()
