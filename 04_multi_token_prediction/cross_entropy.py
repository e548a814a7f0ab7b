"""Cross-entropy: what it costs, in nats, to have given the true token the probability that we gave it.

Run it:    python cross_entropy.py
Notebook:  cross_entropy.ipynb
Source:    arXiv:2412.19437, Eq. (24); the same loss serves the main model and every multi-token-prediction depth.
Letters:   N tokens (any leading axes), V vocabulary, D model width.

Two things here are easy to get wrong. Rows that must not count (no target in the window, target in another document)
carry the target IGNORE and give neither loss nor gradient. And the *divisor* is a choice: the mean over the rows that
count (the default), or a fixed number of rows as in Eq. (24), which divides T - k terms by T.
"""

import numpy as np

IGNORE = (
    -100
)  # the target of a row that does not count; PyTorch's value, so that targets can be handed over as they are


def count_rows(logits: np.ndarray, target: np.ndarray, divisor: float | None) -> tuple[np.ndarray, float]:
    """Say which rows count and what to divide by; refuse what cannot be right.

    Raises:
        ValueError: the shapes do not match, a target is outside the vocabulary, or no row counts.
    """
    V = logits.shape[-1]
    if target.shape != logits.shape[:-1]:
        raise ValueError(f"logits {logits.shape} need targets {logits.shape[:-1]}, got {target.shape}")
    counted = target != IGNORE
    if counted.any() and not 0 <= target[counted].min() <= target[counted].max() < V:
        low, high = target[counted].min(), target[counted].max()
        raise ValueError(f"targets {low}..{high} leave the vocabulary 0..{V - 1}; mark rows to skip with {IGNORE}")
    if divisor is None and not counted.any():
        raise ValueError("no row counts, the mean is 0/0; give a divisor or a window with at least one target")
    return counted, float(counted.sum() if divisor is None else divisor)


def cross_entropy_forward(logits: np.ndarray, target: np.ndarray, divisor: float | None = None) -> tuple[float, tuple]:
    """Average the negative log probability of the targets.

        L = -(1/divisor) sum_n log softmax(logits_n)[target_n]
          =  (1/divisor) sum_n (log sum_v exp(logits_nv) - logits_n[target_n])

    Args:
        logits: [..., V], any real numbers; -inf bans a token.
        target: [...] token numbers, or IGNORE.
        divisor: number of rows to divide by; the rows that count when None.
    Returns:
        the loss in nats, and the cache for `cross_entropy_backward`.
    Source: arXiv:2412.19437, Eq. (24).
    """
    counted, divisor = count_rows(logits, target, divisor)
    shifted = logits - logits.max(axis=-1, keepdims=True)  # softmax ignores a shift; exp of a large logit overflows
    prob = np.exp(shifted)
    total = prob.sum(axis=-1, keepdims=True)
    prob /= total
    place = np.where(counted, target, 0)[..., None]
    log_prob = np.take_along_axis(shifted, place, axis=-1) - np.log(total)
    loss = -float(log_prob[..., 0][counted].sum()) / divisor  # V3 Eq. (24)
    return loss, (prob, place, counted, divisor)


def cross_entropy_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Differentiate by the logits: probability minus one-hot, over the divisor, nothing where the row is ignored."""
    prob, place, counted, divisor = cache
    dlogits = prob.copy()
    np.put_along_axis(dlogits, place, np.take_along_axis(prob, place, axis=-1) - 1, axis=-1)
    dlogits *= counted[..., None] * prob.dtype.type(dloss / divisor)
    return dlogits


def head_loss_forward(
    hidden: np.ndarray, lm_head_VD: np.ndarray, target: np.ndarray, divisor: float | None = None, chunk: int = 1024
) -> tuple[float, tuple]:
    """Compute output head and loss together, `chunk` rows at a time, so that all logits never exist at once.

    For 4096 tokens the logits of V3 are 4096 x 129,280 x 4 bytes = 2.1 GB, and every prediction depth has its own.
    The gradient of a chunk needs only its own logits, so it is taken on the spot and only its products are kept.

    Args:
        hidden: [..., D] rows that go into the head.
        lm_head_VD: the output head, shared by the main model and every depth.
        chunk: rows whose logits exist at the same time.
    Returns:
        the loss, and as cache its gradients by `hidden` and `lm_head_VD` for a loss gradient of 1.
    Source: arXiv:2412.19437, Eq. (23), Eq. (24).
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} rows at a time never finishes; use at least 1")
    if divisor is None:
        divisor = max(int((target != IGNORE).sum()), 1)
    hidden_ND, target_N = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    if len(hidden_ND) != len(target_N):
        raise ValueError(f"hidden {hidden.shape} has {len(hidden_ND)} rows, target {target.shape} has {len(target_N)}")
    loss, dhidden_ND, dlm_head_VD = 0.0, np.empty_like(hidden_ND), np.zeros_like(lm_head_VD)
    for start in range(0, len(hidden_ND), chunk):
        rows = slice(start, start + chunk)
        logits_NV = hidden_ND[rows] @ lm_head_VD.T  # V3 Eq. (23)
        part, cache = cross_entropy_forward(logits_NV, target_N[rows], divisor)
        dlogits_NV = cross_entropy_backward(1.0, cache)
        loss += part
        dhidden_ND[rows] = dlogits_NV @ lm_head_VD
        dlm_head_VD += dlogits_NV.T @ hidden_ND[rows]
    return loss, (dhidden_ND.reshape(hidden.shape), dlm_head_VD)


def head_loss_backward(dloss: float, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Scale the gradients that the forward pass took on the spot: (dhidden, dlm_head_VD)."""
    dhidden, dlm_head_VD = cache
    return dhidden * dhidden.dtype.type(dloss), dlm_head_VD * dlm_head_VD.dtype.type(dloss)


def perplexity(loss: float) -> float:
    """Turn a mean loss in nats into the number of equally likely tokens that would be as surprising."""
    return float(np.exp(loss))


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Turn a mean loss per token, in nats, into bits per byte of text, which does not depend on the tokenizer."""
    return loss * n_tokens / (np.log(2) * n_bytes)


def main() -> None:
    """Print a loss that can be followed with a pencil, and its gradient against central differences."""
    logits = np.log(np.array([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0], [5.0, 5.0, 5.0]]))
    target = np.array([1, 0, IGNORE])
    loss, cache = cross_entropy_forward(logits, target)
    print("probability of the true token: 2/4 and 6/8; the third row does not count")
    print(f"loss = -(log 1/2 + log 3/4) / 2 = {loss:.6f} nats, perplexity {perplexity(loss):.4f}")
    print(f"the same over T = 3 rows (Eq. 24): {cross_entropy_forward(logits, target, divisor=3)[0]:.6f}")
    dlogits = cross_entropy_backward(1.0, cache)
    print(f"gradient = (probability - one-hot) / 2:\n{dlogits.round(4)}")
    worst, h = 0.0, 6e-6
    for index in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index], down[index] = up[index] + h, down[index] - h
        numeric = (cross_entropy_forward(up, target)[0] - cross_entropy_forward(down, target)[0]) / (2 * h)
        worst = max(worst, abs(numeric - dlogits[index]))
    print(f"largest difference from central differences: {worst:.1e}")


if __name__ == "__main__":
    main()
