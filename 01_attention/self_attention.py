"""Self-attention: every token asks a question, and is answered with a weighted mean of what the tokens say.

    python self_attention.py    a worked example and the gradient check
    self_attention.ipynb        the same on the whiteboard

Source: Vaswani et al. 2017 (arXiv:1706.03762), Eq. (1). DeepSeek-V2 (arXiv:2405.04434), Eq. (1)-(3) and (7), one head.
Letters: S queries, T keys, D model width, K key width, U value width. Any number of axes may stand before S and T.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class SelfAttentionWeights:
    """What turns a token into its question, its label and its message, [out, in]; also the shape of their gradients."""

    q_proj: np.ndarray  # [K, D]
    k_proj: np.ndarray  # [K, D]
    v_proj: np.ndarray  # [U, D]

    @classmethod
    def init(cls, rng: np.random.Generator, hidden_size: int, key_dim: int, value_dim: int) -> "SelfAttentionWeights":
        """Draw normal weights of variance 1 / fan-in, so that queries, keys and values are of order one."""
        widths = (key_dim, key_dim, value_dim)
        return cls(*(rng.normal(size=(width, hidden_size)) * hidden_size**-0.5 for width in widths))


def score_keys(query_SK: np.ndarray, key_TK: np.ndarray) -> np.ndarray:
    """Multiply every query with every key.

        score = query key^T / sqrt(K)        (a sum of K products of order one has size sqrt(K): the division undoes it)

    Returns:
        score_ST: any real number; large where the key answers the query.
    Raises:
        ValueError: queries and keys have different widths or different axes before them.
    """
    if query_SK.shape[-1] != key_TK.shape[-1]:
        raise ValueError(
            f"queries of width {query_SK.shape[-1]} cannot meet keys of width {key_TK.shape[-1]}; "
            "give q_proj and k_proj the same number of rows"
        )
    if query_SK.shape[:-2] != key_TK.shape[:-2]:
        raise ValueError(f"query {query_SK.shape} and key {key_TK.shape} differ before their last two axes")
    scale = query_SK.shape[-1] ** -0.5
    return query_SK @ np.swapaxes(key_TK, -1, -2) * scale


def share_attention(score_ST: np.ndarray) -> np.ndarray:
    """Turn each row of scores into shares by softmax: positive, with sum one; a score of -inf gets exactly nothing."""
    top = score_ST.max(axis=-1, keepdims=True)  # the largest exponent becomes 0: no overflow, the same shares
    raised = np.exp(score_ST - top)
    return raised / raised.sum(axis=-1, keepdims=True)


def attend_forward(query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Answer each query with the mean of the values, weighted by how well the keys fit.

        out = softmax(query key^T / sqrt(K)) value

    Returns:
        out_SU: each row lies between the smallest and the largest value, coordinate by coordinate.
    Raises:
        ValueError: there is not one value for each key.
    """
    score_ST = score_keys(query_SK, key_TK)
    return mix_values(share_attention(score_ST), query_SK, key_TK, value_TU)


def mix_values(prob_ST: np.ndarray, query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray) -> tuple:
    """Average the values by the shares; return (out_SU, cache).

    Raises:
        ValueError: there is not one value for each key.
    """
    if value_TU.shape[:-1] != key_TK.shape[:-1]:
        raise ValueError(
            f"key {key_TK.shape} and value {value_TU.shape} differ before the width; one value for each key"
        )
    return prob_ST @ value_TU, (query_SK, key_TK, value_TU, prob_ST)


def attend_backward(dout_SU: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the three steps backwards: the mean, the softmax, the scaled product.

        dprob  = dout value^T
        dscore = prob * (dprob - sum_t prob dprob)        (shares sum to one: only what differs from the mean counts)

    Returns:
        dquery_SK, dkey_TK, dvalue_TU
    """
    query_SK, key_TK, value_TU, prob_ST = cache
    dvalue_TU = np.swapaxes(prob_ST, -1, -2) @ dout_SU
    dprob_ST = dout_SU @ np.swapaxes(value_TU, -1, -2)
    mean_S1 = np.sum(prob_ST * dprob_ST, axis=-1, keepdims=True)
    dscore_ST = prob_ST * (dprob_ST - mean_S1) * query_SK.shape[-1] ** -0.5  # the scale again: it multiplied the score
    return dscore_ST @ key_TK, np.swapaxes(dscore_ST, -1, -2) @ query_SK, dvalue_TU


def self_attend_forward(
    hidden_SD: np.ndarray, weights: SelfAttentionWeights, attend: Callable = attend_forward
) -> tuple[np.ndarray, tuple]:
    """Let the tokens of one sequence attend to each other: queries, keys and values all come from the same hidden rows.

    Args:
        attend: how queries meet keys; `attend_forward` sees everything, causal_attention.py has one that looks back.
    Returns:
        out_SU
    Raises:
        ValueError: the matrices read another width than hidden_SD has.
    """
    for name, matrix in vars(weights).items():
        if hidden_SD.shape[-1] != matrix.shape[1]:
            raise ValueError(
                f"hidden has width {hidden_SD.shape[-1]}, {name} reads {matrix.shape[1]}; pass [..., S, D]"
            )
    query_SK, key_SK, value_SU = (hidden_SD @ w.T for w in (weights.q_proj, weights.k_proj, weights.v_proj))
    out_SU, attend_cache = attend(query_SK, key_SK, value_SU)
    return out_SU, (hidden_SD, attend_cache, weights)


def self_attend_backward(dout_SU: np.ndarray, cache: tuple) -> tuple[np.ndarray, SelfAttentionWeights]:
    """Collect what a hidden row did in its three roles: as a question, as a label, as a message.

    Returns:
        dhidden_SD, dweights
    """
    hidden_SD, attend_cache, w = cache
    dquery_SK, dkey_SK, dvalue_SU = attend_backward(dout_SU, attend_cache)
    dhidden_SD = dquery_SK @ w.q_proj + dkey_SK @ w.k_proj + dvalue_SU @ w.v_proj
    flat_ND = hidden_SD.reshape(-1, hidden_SD.shape[-1])
    dweights = SelfAttentionWeights(*(d.reshape(-1, d.shape[-1]).T @ flat_ND for d in (dquery_SK, dkey_SK, dvalue_SU)))
    return dhidden_SD, dweights


def compare_slopes(loss: Callable[[], float], array: np.ndarray, gradient: np.ndarray) -> str:
    """Say the slope of `loss` along one random direction of `array`: by central difference, and by the gradient."""
    step = 1e-6 * np.random.default_rng(7).normal(size=array.shape)  # touches every element at once
    array += step
    above = loss()
    array -= 2 * step
    below = loss()
    array += step
    return f"{(above - below) / 2e-6:+.8f} by central difference, {np.sum(gradient * step) / 1e-6:+.8f} by hand"


def main() -> None:
    """Two tokens, one question, all by pencil; then the scale; then the gradient check."""
    query, value = np.array([[2.0, 0, 0, 0]]), np.array([[4.0, 0.0], [0.0, 8.0]])
    key = np.array([[0.0, 0, 0, 0], [np.log(3.0), 0, 0, 0]])
    out, cache = attend_forward(query, key, value)
    dquery, dkey, dvalue = attend_backward(np.ones((1, 2)), cache)
    scores, shares = score_keys(query, key)[0], cache[3][0]
    print(
        f"The query (2, 0, 0, 0) meets the keys 0 and (ln 3, 0, 0, 0): scores 0 and 2 ln 3 / sqrt(4) = {scores[1]:.4f}."
    )
    print(f"Raised they are 1 and 3, so the shares are {shares[0]:.2f} and {shares[1]:.2f}.")
    print(f"The values (4, 0) and (0, 8), mixed: 1/4 (4, 0) + 3/4 (0, 8) = ({out[0, 0]:g}, {out[0, 1]:g}).")
    print("Back, for a gradient of (1, 1): a unit more of share 1 is worth 4, of share 2 it is worth 8, on average 7.")
    print("So the scores get 1/4 (4 - 7) = -0.75 and 3/4 (8 - 7) = 0.75; the sum is zero.")
    print(
        f"The query's first coordinate gets 0.75 ln 3 / 2 = {dquery[0, 0]:.4f}, the keys' get {dkey[0, 0]:g} and",
        end=" ",
    )
    print(f"{dkey[1, 0]:g}; the values get their shares, {dvalue[0, 0]:g} and {dvalue[1, 0]:g}.")

    rng = np.random.default_rng(0)
    print("\nwidth K   spread of q.k   spread of q.k / sqrt(K)   (64 random queries, 64 random keys)")
    for width in (4, 64, 1024):
        query, key = rng.normal(size=(64, width)), rng.normal(size=(64, width))
        print(f"{width:7d} {np.std(query @ key.T):13.2f} {np.std(score_keys(query, key)):18.2f}")

    weights, hidden, dout = SelfAttentionWeights.init(rng, 5, 3, 2), rng.normal(size=(7, 5)), rng.normal(size=(7, 2))
    dhidden, dweights = self_attend_backward(dout, self_attend_forward(hidden, weights)[1])
    arrays = {"hidden": (hidden, dhidden)}
    arrays |= {f.name: (getattr(weights, f.name), getattr(dweights, f.name)) for f in fields(weights)}
    print()
    for name, (array, gradient) in arrays.items():
        slopes = compare_slopes(lambda: np.sum(dout * self_attend_forward(hidden, weights)[0]), array, gradient)
        print(f"gradient check {name:7} {slopes}")


if __name__ == "__main__":
    main()
