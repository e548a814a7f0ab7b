"""Causal attention: a token may look back, never ahead, so every position can learn to predict the next token at once.

    python causal_attention.py  a worked example and the gradient check
    causal_attention.ipynb      the same on the whiteboard

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.3; DeepSeek-V2 (arXiv:2405.04434), Eq. (7): j from 1 to t.
Letters: S queries, T keys (T >= S: the queries are the last S of the T positions), K key width, U value width.
"""

import numpy as np
from self_attention import attend_backward, attend_forward, compare_slopes, mix_values, score_keys, share_attention


def causal_mask(n_queries: int, n_keys: int) -> np.ndarray:
    """Say which query may look at which key: True on and below the diagonal that ends in the last corner.

        mask[s, t] = t <= s + (T - S)        (query s stands at position s + T - S, after the T - S cached ones)

    Raises:
        ValueError: fewer keys than queries, so that the first queries would see nothing.
    """
    if n_keys < n_queries:
        raise ValueError(
            f"{n_queries} queries but only {n_keys} keys; a query also needs its own key, so append the new keys first"
        )
    position_S1 = np.arange(n_queries)[:, None] + (n_keys - n_queries)
    return np.arange(n_keys)[None, :] <= position_S1


def attend_masked_forward(
    query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray, mask_ST: np.ndarray
) -> tuple[np.ndarray, tuple]:
    """Attend where the mask is True.

        score = -inf where not mask        (exp(-inf) = 0: no share, no message, and no gradient)

    Raises:
        ValueError: the mask is not one boolean for each query and key, or leaves a query nothing to look at.
    """
    expected = (query_SK.shape[-2], key_TK.shape[-2])
    if mask_ST.shape != expected or mask_ST.dtype != bool:
        raise ValueError(
            f"mask {mask_ST.dtype}{mask_ST.shape}, need bool{expected}: a row for each query, a column for each key"
        )
    blind = np.flatnonzero(~mask_ST.any(axis=-1))
    if blind.size:
        raise ValueError(f"query {blind[0]} may look at no key; let it see at least its own, or drop its row")
    # before the softmax: a share set to zero after it would leave the others summing to less than one
    score_ST = np.where(mask_ST, score_keys(query_SK, key_TK), -np.inf)
    return mix_values(share_attention(score_ST), query_SK, key_TK, value_TU)


def attend_causally_forward(query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Attend to the past and the present; with T > S the first T - S keys are older than every query.

    Raises:
        ValueError: fewer keys than queries.
    """
    mask_ST = causal_mask(query_SK.shape[-2], key_TK.shape[-2])
    return attend_masked_forward(query_SK, key_TK, value_TU, mask_ST)


def attend_causally_backward(dout_SU: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Send the gradient back; nothing new to derive, for a share of zero makes dscore = prob * (...) zero by itself.

    Returns:
        dquery_SK, dkey_TK, dvalue_TU
    """
    return attend_backward(dout_SU, cache)


def main() -> None:
    """With equal scores causal attention is the running mean; then what leaks, then the gradient check."""
    query, key, value = np.zeros((3, 2)), np.zeros((3, 2)), np.array([[6.0], [2.0], [1.0]])
    out, cache = attend_causally_forward(query, key, value)
    print("three tokens with equal scores and the values 6, 2, 1:")
    for s in range(3):
        seen = " ".join("yes" if sees else "no" for sees in causal_mask(3, 3)[s])
        shares = ", ".join(f"{share:.3g}" for share in cache[3][s])
        print(f"  token {s} may look at tokens 0, 1, 2: {seen}; its shares are {shares}; it takes home {out[s, 0]:g}")
    print("that is the running mean: 6, (6 + 2) / 2, (6 + 2 + 1) / 3")
    print("two new queries after three cached keys (S = 2, T = 5):")
    for s, row in enumerate(causal_mask(2, 5)):
        print(f"  the query at position {3 + s} sees keys {', '.join(str(t) for t in np.flatnonzero(row))}")

    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    edited = value.copy()
    edited[3] += 1.0  # another message from the fourth token
    print("\nedit token 3: how far does each output move?")
    for name, attend in (("without mask", attend_forward), ("causal", attend_causally_forward)):
        moved = np.abs(attend(query, key, edited)[0] - attend(query, key, value)[0]).max(axis=-1)
        print(f"  {name:13}", ", ".join(f"token {s}: {move:.3f}" for s, move in enumerate(moved)))

    dout = rng.normal(size=(5, 2))
    gradients = attend_causally_backward(dout, attend_causally_forward(query, key, value)[1])
    print()
    for name, array, gradient in zip(("query", "key", "value"), (query, key, value), gradients):
        slopes = compare_slopes(lambda: np.sum(dout * attend_causally_forward(query, key, value)[0]), array, gradient)
        print(f"gradient check {name:6} {slopes}")


if __name__ == "__main__":
    main()
