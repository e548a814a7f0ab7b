"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

import numpy as np


def merge_pair(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Walk with an index of one's own: after a hit it jumps by two, so that no token is used twice."""
    merged, i = [], 0
    while i < len(tokens):
        here = tuple(tokens[i : i + 2]) == tuple(pair)
        merged.append(new if here else tokens[i])
        i += 2 if here else 1
    return merged


def embed_backward(dx_ND: np.ndarray, token_N: np.ndarray, V: int) -> np.ndarray:
    """A look-up is a product with one-hot rows; its way back is the product with their transpose, a sum by token.

    `dtable[token] += dx` would fetch, add and write back once: of two equal tokens the last one would win.
    """
    dtable_VD = np.zeros((V, dx_ND.shape[1]))
    np.add.at(dtable_VD, token_N, dx_ND)
    return dtable_VD


def surprise(logits_NV: np.ndarray, target_N: np.ndarray) -> float:
    """log sum exp minus the logit that came; the largest is taken out first, which changes nothing but overflow."""
    shifted_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    log_total_N = np.log(np.exp(shifted_NV).sum(axis=1))
    return float(np.mean(log_total_N - shifted_NV[np.arange(len(target_N)), target_N]))


def surprise_backward(logits_NV: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Probability minus one-hot; over N, because the loss is a mean."""
    raised_NV = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
    dlogits_NV = raised_NV / raised_NV.sum(axis=1, keepdims=True)
    dlogits_NV[np.arange(len(target_N)), target_N] -= 1
    return dlogits_NV / len(target_N)


def adam_step(
    w: np.ndarray, dw: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two running means, each divided by the weight that it has gathered so far, 1 - beta^step; then their quotient."""
    m, v = 0.9 * m + 0.1 * dw, 0.95 * v + 0.05 * dw**2
    mean, square = m / (1 - 0.9**step), v / (1 - 0.95**step)
    return w - rate * mean / (np.sqrt(square) + 1e-8), m, v


def bigram_backward(token_N: np.ndarray, logits_VV: np.ndarray) -> np.ndarray:
    """The table of logits is an embedding whose rows are logits: surprise backward, then the look-up backward."""
    dlogits_NV = surprise_backward(logits_VV[token_N[:-1]], token_N[1:])
    return embed_backward(dlogits_NV, token_N[:-1], len(logits_VV))


def context_backward(
    dlogits_NV: np.ndarray,
    window_NT: np.ndarray,
    embed_tokens_VD: np.ndarray,
    up_proj_FX: np.ndarray,
    lm_head_VF: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each product hands each factor the other one; the bend multiplies by 1 - h^2; rows go home and add up."""
    V, D = embed_tokens_VD.shape
    x_NX = embed_tokens_VD[window_NT].reshape(len(window_NT), -1)
    hidden_NF = np.tanh(x_NX @ up_proj_FX.T)
    dbent_NF = (dlogits_NV @ lm_head_VF) * (1 - hidden_NF**2)
    drows_XD = (dbent_NF @ up_proj_FX).reshape(-1, D)  # window after window, token after token
    return embed_backward(drows_XD, window_NT.ravel(), V), dbent_NF.T @ x_NX, dlogits_NV.T @ hidden_NF


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """The marks between 2^e and 2^(e+1) are 2^(e-7) apart; frexp counts the exponent from a half, hence the 8."""
    _, power = np.frexp(x)
    step = np.ldexp(1.0, power - 8)
    return np.round(x / step) * step


def language_model_from_an_empty_file(
    window_NT: np.ndarray,
    target_N: np.ndarray,
    embed_tokens_VD: np.ndarray,
    up_proj_FX: np.ndarray,
    lm_head_VF: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Everything above in a row: rows, layer, scores, surprise, and home again."""
    x_NX = embed_tokens_VD[window_NT].reshape(len(window_NT), -1)
    logits_NV = np.tanh(x_NX @ up_proj_FX.T) @ lm_head_VF.T
    dlogits_NV = surprise_backward(logits_NV, target_N)
    gradients = context_backward(dlogits_NV, window_NT, embed_tokens_VD, up_proj_FX, lm_head_VF)
    return surprise(logits_NV, target_N), *gradients
