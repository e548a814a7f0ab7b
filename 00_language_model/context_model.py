"""A language model with a context: the last few tokens, a row of numbers for each, one hidden layer, the next token.

    python context_model.py     a worked example to follow with a pencil, training, and the gradient check
    context_model.ipynb         the same on the whiteboard

Source: Bengio et al. 2003, "A neural probabilistic language model", Journal of Machine Learning Research 3, Eq. (1),
without the direct connections and biases. Everything of a large language model is here but attention, which looks
further than a window of fixed length (chapter 01).
Letters: N places in the text, T tokens that the model looks back at, D width of a token's row, F hidden width,
V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from bigram_model import write_tokens
from descent import adam_step
from surprise import surprise_backward, surprise_forward
from text_tokens import (
    ALPHABET,
    decode_characters,
    embed_backward,
    embed_forward,
    encode_characters,
    story_floor,
    tell_stories,
)


@dataclass(frozen=True)
class ContextWeights:
    """Three matrices, [out, in]; also the shape of their gradients."""

    embed_tokens: np.ndarray  # [V, D]: what each token is
    up_proj: np.ndarray  # [F, T D]: what the last T tokens mean together
    lm_head: np.ndarray  # [V, F]: what follows from it

    @classmethod
    def init(cls, rng: np.random.Generator, V: int, T: int, D: int, F: int) -> "ContextWeights":
        """Draw normal weights of variance 1 / fan-in, and a small head, so that training starts without an idea."""
        return cls(
            embed_tokens=rng.standard_normal((V, D)),
            up_proj=rng.standard_normal((F, T * D)) * (T * D) ** -0.5,
            lm_head=rng.standard_normal((V, F)) * 0.1 * F**-0.5,
        )


def cut_windows(token_N: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every window of T tokens, and the token that follows it: (window_NT, target_N).

    Raises:
        ValueError: the text is not longer than the window.
    """
    if len(token_N) <= T:
        raise ValueError(f"a text of {len(token_N)} tokens has no window of {T} with a token after it")
    window_NT = np.lib.stride_tricks.sliding_window_view(token_N, T)[:-1]
    return window_NT, token_N[T:]


def context_forward(window_NT: np.ndarray, weights: ContextWeights) -> tuple[np.ndarray, tuple]:
    """Look up the rows of T tokens, lay them side by side, think, score every token of the vocabulary.

        h = tanh(W_up [x_1; ...; x_T])        z = W_head h

    Returns:
        logits_NV, and the cache.
    Raises:
        ValueError: the window is not the one that up_proj reads.
    """
    w, N = weights, len(window_NT)
    if window_NT.shape[1] * w.embed_tokens.shape[1] != w.up_proj.shape[1]:
        reads = w.up_proj.shape[1] // w.embed_tokens.shape[1]
        raise ValueError(f"a window of {window_NT.shape[1]} tokens, but up_proj reads {reads}; pass the last {reads}")
    x_NTD, looked_up = embed_forward(window_NT, w.embed_tokens)
    joined_NX = x_NTD.reshape(N, -1)
    hidden_NF = np.tanh(joined_NX @ w.up_proj.T)
    return hidden_NF @ w.lm_head.T, (looked_up, joined_NX, hidden_NF, w)


def context_backward(dlogits_NV: np.ndarray, cache: tuple) -> ContextWeights:
    """Go back through the head, the bend, the layer and the look-up.

        dh = dz W_head        da = dh (1 - h^2)        dx = da W_up, cut into T rows, each sent to its token

    Returns:
        dweights
    """
    looked_up, joined_NX, hidden_NF, w = cache
    dhidden_NF = dlogits_NV @ w.lm_head
    dbent_NF = dhidden_NF * (1 - hidden_NF**2)  # the slope of tanh, from what came out of it
    djoined_NX = dbent_NF @ w.up_proj
    dx_NTD = djoined_NX.reshape(len(djoined_NX), -1, w.embed_tokens.shape[1])
    return ContextWeights(
        embed_tokens=embed_backward(dx_NTD, looked_up),
        up_proj=dbent_NF.T @ joined_NX,
        lm_head=dlogits_NV.T @ hidden_NF,
    )


def measure_context(token_N: np.ndarray, weights: ContextWeights, T: int) -> float:
    """Mean surprise over a whole text, in nats a token."""
    window_NT, target_N = cut_windows(token_N, T)
    return surprise_forward(context_forward(window_NT, weights)[0], target_N)[0]


def train_context(
    token_N: np.ndarray,
    T: int,
    *,
    V: int,
    n_steps: int = 1500,
    D: int = 8,
    F: int = 64,
    rate: float = 0.01,
    seed: int = 0,
    backward: Callable = context_backward,
) -> tuple[ContextWeights, list[float]]:
    """Train by Adam on 128 windows a step, the rate falling in a straight line to zero; return weights and losses.

    Args:
        backward: another way back, to see what a mistake does to training.
    """
    rng = np.random.default_rng(seed)
    weights, moments, losses = ContextWeights.init(rng, V, T, D, F), None, []
    window_NT, target_N = cut_windows(token_N, T)
    for step in range(n_steps):
        drawn = rng.integers(len(target_N), size=128)
        logits, cache = context_forward(window_NT[drawn], weights)
        loss, surprised = surprise_forward(logits, target_N[drawn])
        gradients = backward(surprise_backward(surprised), cache)
        moved, moments = adam_step(vars(weights), vars(gradients), moments, rate * (1 - step / n_steps))
        weights = ContextWeights(**moved)
        losses.append(loss)
    return weights, losses


def main() -> None:
    """Go through a model of two numbers a layer by pencil; then train on stories, compare windows, write."""
    head = np.array([[0.0], [np.log(9) / np.tanh(1)]])
    tiny = ContextWeights(embed_tokens=np.array([[0.0], [1.0]]), up_proj=np.array([[1.0, -1.0]]), lm_head=head)
    logits, _ = context_forward(np.array([[1, 0], [0, 0]]), tiny)
    print("two tokens 0 and 1 with rows 0 and 1; hidden = tanh(first - second); logits 0 and hidden * ln 9 / tanh 1")
    for window, z in zip(("1 0", "0 0"), logits):
        p = np.exp(z) / np.exp(z).sum()
        print(f"  after {window}: logits {z[0]:.3f}, {z[1]:.3f}, so P(1) = {p[1]:.2f}")

    rng, V = np.random.default_rng(0), len(ALPHABET)
    token, unseen = (encode_characters(tell_stories(rng, n)) for n in (1500, 300))
    print(f"\ntrained on {len(token):,} characters; surprise on {len(unseen):,} unseen ones, in nats a character")
    for T in (1, 2, 4, 8):
        weights, _ = train_context(token, T, V=V, n_steps=600)
        print(f"  looking back {T} characters: {measure_context(unseen, weights, T):.3f}")
    print(f"  nobody can be below: {story_floor():.3f}")

    def look_back(tokens: list[int]) -> np.ndarray:
        return context_forward(np.array([tokens[-8:]]), weights)[0][0]

    start = encode_characters("the cat ").tolist()
    print("it writes:", decode_characters(write_tokens(look_back, start, 70, rng)))
    small, window = ContextWeights.init(rng, 5, 3, 2, 7), rng.integers(5, size=(11, 3))
    dlogits = rng.standard_normal((11, 5))
    gradients = context_backward(dlogits, context_forward(window, small)[1])
    for name, array in vars(small).items():
        step = 1e-6 * rng.standard_normal(array.shape)
        moved = [ContextWeights(**{**vars(small), name: array + s}) for s in (step, -step)]
        up, down = (np.sum(dlogits * context_forward(window, m)[0]) for m in moved)
        print(f"gradient check {name:12} {(up - down) / 2 / np.sum(vars(gradients)[name] * step):.8f}")


if __name__ == "__main__":
    main()
