"""Surprise: what a guess costs when the truth comes out, in nats; logits, softmax, entropy, cross-entropy.

    python surprise.py          a worked example to follow with a pencil, and the gradient check
    surprise.ipynb              the same on the whiteboard

Source: Shannon 1948 for entropy. This loss serves DeepSeek-V3's main model and its MTP modules (arXiv:2412.19437,
Eq. (24)); chapter 04 computes it in pieces, with rows that do not count.
Letters: N tokens, V vocabulary.
"""

import numpy as np


def softmax_forward(logits_NV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn each row of scores into probabilities.

        p_v = exp(z_v) / sum_u exp(z_u)        (the largest z is subtracted first: same p, and exp cannot overflow)

    Returns:
        prob_NV, positive with sum one; it is the cache as well.
    """
    raised_NV = np.exp(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    prob_NV = raised_NV / raised_NV.sum(axis=-1, keepdims=True)
    return prob_NV, prob_NV


def softmax_backward(dprob_NV: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """Go back through a softmax.

    dz_v = p_v (dp_v - sum_u p_u dp_u)        (raising every z alike changes nothing: only the lead counts)
    """
    prob_NV = cache
    return prob_NV * (dprob_NV - np.sum(prob_NV * dprob_NV, axis=-1, keepdims=True))


def entropy(prob_NV: np.ndarray) -> np.ndarray:
    """Average the surprise -log p over what really happens when p is true: nats, 0 for certainty, log V for no idea."""
    return -np.sum(prob_NV * np.log(np.where(prob_NV > 0, prob_NV, 1.0)), axis=-1)  # what never happens costs nothing


def cross_entropy(true_NV: np.ndarray, guess_NV: np.ndarray) -> np.ndarray:
    """Average the surprise of somebody who believes `guess` while `true` holds; at least the entropy of `true`.

        H(true, guess) = H(true) + D(true || guess)        D >= 0, and 0 only for the right guess

    Returns:
        nats for each row; infinite where something happens that the guess calls impossible.
    """
    with np.errstate(divide="ignore"):
        log_guess_NV = np.log(guess_NV)
    return -np.sum(np.where(true_NV > 0, true_NV * np.where(true_NV > 0, log_guess_NV, 0.0), 0.0), axis=-1)


def surprise_forward(logits_NV: np.ndarray, target_N: np.ndarray) -> tuple[float, tuple]:
    """Average the surprise at the tokens that really came.

        L = mean_n -log softmax(z_n)[target_n] = mean_n (log sum_v exp(z_nv) - z_n[target_n])

    Returns:
        the loss in nats, and the cache.
    Raises:
        ValueError: there is not one target in the vocabulary for each row.
    """
    V = logits_NV.shape[-1]
    if target_N.shape != logits_NV.shape[:-1]:
        raise ValueError(f"logits {logits_NV.shape} need targets {logits_NV.shape[:-1]}, got {target_N.shape}")
    if target_N.size and not 0 <= target_N.min() <= target_N.max() < V:
        raise ValueError(f"targets {target_N.min()}..{target_N.max()} leave the vocabulary 0..{V - 1}")
    shifted_NV = logits_NV - logits_NV.max(axis=-1, keepdims=True)
    log_total_N = np.log(np.exp(shifted_NV).sum(axis=-1))
    chosen_N = np.take_along_axis(shifted_NV, target_N[..., None], axis=-1)[..., 0]
    return float(np.mean(log_total_N - chosen_N)), (logits_NV, target_N)


def surprise_backward(cache: tuple) -> np.ndarray:
    """Say in which direction every logit should move.

    dz_n = (softmax(z_n) - one_hot(target_n)) / N        (the true token up, the others down by what they had)
    """
    logits_NV, target_N = cache
    one_hot_NV = np.arange(logits_NV.shape[-1]) == target_N[..., None]
    return (softmax_forward(logits_NV)[0] - one_hot_NV) / target_N.size


def in_bits(nats: float) -> float:
    """Turn nats into bits: yes-or-no questions. A factor of two in probability is one bit, or 0.693 nats."""
    return float(nats / np.log(2))


def perplexity(loss: float) -> float:
    """Turn a loss in nats into the number of equally likely tokens that would surprise as much."""
    return float(np.exp(loss))


def main() -> None:
    """Three tokens by pencil: probabilities, surprise, the gradient; then central differences."""
    logits, target = np.log(np.array([[2.0, 1.0, 1.0]])), np.array([0])
    prob, _ = softmax_forward(logits)
    print("logits ln 2, 0, 0: raised 2, 1, 1, sum 4, so the probabilities are", ", ".join(f"{p:g}" for p in prob[0]))
    print(f"entropy 1/2 ln 2 + 2 * 1/4 ln 4 = {entropy(prob)[0]:.4f} nats = {in_bits(entropy(prob)[0]):.2f} bits")
    loss, cache = surprise_forward(logits, target)
    print(f"the first token comes: surprise -ln 1/2 = {loss:.4f} nats, perplexity {perplexity(loss):.2f}")
    print("gradient, probability minus one-hot:", ", ".join(f"{d:+.2f}" for d in surprise_backward(cache)[0]))
    true, guess = prob[0], np.full(3, 1 / 3)
    print(f"who believes 1/3 each pays ln 3 = {cross_entropy(true, guess):.4f} on average, the entropy and", end=" ")
    print(f"{cross_entropy(true, guess) - entropy(true):.4f} more for being wrong")

    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((3, 5)), np.array([4, 0, 2])
    step, by_hand = 1e-6 * rng.standard_normal((3, 5)), surprise_backward(surprise_forward(logits, target)[1])
    up, down = (surprise_forward(logits + s, target)[0] for s in (step, -step))
    print(f"gradient check: central difference / by hand = {(up - down) / 2 / np.sum(by_hand * step):.8f}")


if __name__ == "__main__":
    main()
