"""Build a language model, forward and backward, and have every step graded.

    make check CH=00            (or: python -m utils.exercises 00, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md; everything is float64 NumPy.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

import numpy as np


def merge_pair(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Return the tokens with `new` wherever the pair stands, from left to right; each token is used once.

    Returns: a new list; the one that was given stays as it is.
    Notebook: text_tokens.
    """
    raise NotImplementedError


def embed_backward(dx_ND: np.ndarray, token_N: np.ndarray, V: int) -> np.ndarray:
    """Return the gradient of the table whose rows were looked up, x = table[token].

    Returns: [V, D].
    Notebook: text_tokens.
    """
    raise NotImplementedError


def surprise(logits_NV: np.ndarray, target_N: np.ndarray) -> float:
    """Return the mean surprise, in nats, of softmax(logits) at the tokens that came. Logits may be as large as 1000.

    Notebook: surprise.
    """
    raise NotImplementedError


def surprise_backward(logits_NV: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Return the gradient of `surprise` by the logits.

    Returns: [N, V].
    Notebook: surprise.
    """
    raise NotImplementedError


def adam_step(
    w: np.ndarray, dw: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take one step of Adam with betas 0.9 and 0.95, eps 1e-8, without decay.

    Args: m and v are the running means of dw and of its square before this step; step counts from 1.
    Returns: the new w, m, v, all three as new arrays.
    Notebook: descent; arXiv:1412.6980, Algorithm 1.
    """
    raise NotImplementedError


def bigram_backward(token_N: np.ndarray, logits_VV: np.ndarray) -> np.ndarray:
    """Return the gradient of the mean surprise of a bigram model: token n + 1 under softmax(logits[token n]).

    Returns: [V, V].
    Notebook: bigram_model.
    """
    raise NotImplementedError


def context_backward(
    dlogits_NV: np.ndarray,
    window_NT: np.ndarray,
    embed_tokens_VD: np.ndarray,
    up_proj_FX: np.ndarray,
    lm_head_VF: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through logits = tanh(x up_proj^T) lm_head^T, where x holds the T rows of a window side by side, X = T D.

    Returns: dembed_tokens [V, D], dup_proj [F, X], dlm_head [V, F].
    Notebook: context_model.
    """
    raise NotImplementedError


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round each number to the nearest BF16 number: 8 exponent bits, 7 mantissa bits, halves to the even neighbour.

    Args: x, float64, between 1e-30 and 1e30 in size, or zero. No casts: powers of two and one rounding.
    Notebook: number_formats.
    """
    raise NotImplementedError


def language_model_from_an_empty_file(
    window_NT: np.ndarray,
    target_N: np.ndarray,
    embed_tokens_VD: np.ndarray,
    up_proj_FX: np.ndarray,
    lm_head_VF: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean surprise of the model with a window, and its three gradients, from nothing but NumPy.

    Returns: loss, dembed_tokens [V, D], dup_proj [F, T D], dlm_head [V, F].
    Notebook: context_model.
    """
    raise NotImplementedError
