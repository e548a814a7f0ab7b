"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

from collections.abc import Callable

import numpy as np


def further_targets(tokens_BS: np.ndarray, depth: int, document_BS: np.ndarray) -> np.ndarray:
    """The targets are the tokens from depth + 1 on. Contiguous: comparing a row's first and last token is enough."""
    n_rows = tokens_BS.shape[1] - 1 - depth
    alike = document_BS[:, :n_rows] == document_BS[:, depth + 1 :]
    return np.where(alike, tokens_BS[:, depth + 1 :], -100)


def loss_gradient(logits_NV: np.ndarray, target_N: np.ndarray, divisor: float) -> np.ndarray:
    """Probability minus one-hot: log sum exp gives the first, the true token's own logit the second."""
    prob = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
    prob /= prob.sum(axis=1, keepdims=True)
    counted = target_N >= 0
    one_hot = np.eye(logits_NV.shape[1])[np.where(counted, target_N, 0)]
    return counted[:, None] * (prob - one_hot) / divisor


def head_backward(
    hidden_ND: np.ndarray, lm_head_VD: np.ndarray, target_N: np.ndarray, divisor: float
) -> tuple[np.ndarray, np.ndarray]:
    """A product hands each factor the other one; the head is shared by all rows, so its gradient is a sum over them."""
    dlogits_NV = loss_gradient(hidden_ND @ lm_head_VD.T, target_N, divisor)
    return dlogits_NV @ lm_head_VD, dlogits_NV.T @ hidden_ND


def relu_squared_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slope of the square is twice what stood under it; where the relu had cut, that is zero already."""
    open_NF = np.maximum(x_ND @ up_proj.T, 0)
    dup_NF = 2 * open_NF * (dy_ND @ down_proj)
    return dup_NF @ up_proj, dup_NF.T @ x_ND, dy_ND.T @ open_NF**2


def look_up_backward(dx_ND: np.ndarray, token_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """A row of the table went to all places of its token, so it gets the sum; `+=` with a list would keep the last."""
    dembed_VD = np.zeros((vocab_size, dx_ND.shape[1]))
    np.add.at(dembed_VD, token_N, dx_ND)
    return dembed_VD


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What points along x is taken out: its length does not matter to the result."""
    size = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    g, unit = weight * dy, x / size
    return (g - unit * np.mean(g * unit, axis=-1, keepdims=True)) / size, (dy * unit).sum(axis=0)


def join_pair(
    hidden_SD: np.ndarray, embedding_SD: np.ndarray, enorm_D: np.ndarray, hnorm_D: np.ndarray, eh_proj: np.ndarray
) -> np.ndarray:
    """Two norms, since the stream is far longer than an embedding; the embedding first, as eh_proj's name says."""
    return np.concatenate([_norm(embedding_SD, enorm_D), _norm(hidden_SD, hnorm_D)], axis=-1) @ eh_proj.T


def join_pair_backward(
    dy_SD: np.ndarray,
    hidden_SD: np.ndarray,
    embedding_SD: np.ndarray,
    enorm_D: np.ndarray,
    hnorm_D: np.ndarray,
    eh_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Back through the product, cut where the halves met, and each half through its own norm."""
    joined = np.concatenate([_norm(embedding_SD, enorm_D), _norm(hidden_SD, hnorm_D)], axis=-1)
    dembedding, dhidden = np.split(dy_SD @ eh_proj, 2, axis=-1)
    return (
        _norm_backward(dhidden, hidden_SD, hnorm_D)[0],
        _norm_backward(dembedding, embedding_SD, enorm_D)[0],
        dy_SD.T @ joined,
    )


def module_backward(
    dout_SD: np.ndarray,
    hidden_SD: np.ndarray,
    embedding_SD: np.ndarray,
    weights: dict[str, np.ndarray],
    block_forward: Callable,
    block_backward: Callable,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forward once more for what the way back needs; then the last step first."""
    pair = hidden_SD, embedding_SD, weights["enorm"], weights["hnorm"], weights["eh_proj"]
    rows, cache = block_forward(join_pair(*pair))
    drows, dnorm = _norm_backward(dout_SD, rows, weights["shared_head.norm"])
    dhidden, dembedding, _ = join_pair_backward(block_backward(drows, cache), *pair)
    return dhidden, dembedding, dnorm


def chain_backward(
    dout_1: np.ndarray, dout_2: np.ndarray, back_1: Callable, back_2: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth 1's rows were used twice, by the head and by depth 2: their slopes add. A row not used gets zero."""
    dhidden, dembedding_2 = back_2(dout_2)
    handed = np.concatenate([dhidden, np.zeros((1, dhidden.shape[1]))])  # depth 2 had left out depth 1's last row
    dhidden, dembedding_1 = back_1(dout_1 + handed)
    return np.concatenate([dhidden, np.zeros((1, dhidden.shape[1]))]), dembedding_1, dembedding_2


def parallel_backward(dout: list[np.ndarray], back: list[Callable]) -> np.ndarray:
    """The heads know nothing of each other: each sends its own gradient into the shared rows, and they add up."""
    T = len(dout[0]) + 1
    dhidden_TD = np.zeros((T, dout[0].shape[1]))
    for d, way in zip(dout, back):
        dhidden_TD[: len(d)] += way(d)  # a head leaves out the LAST rows: they have no target so far ahead
    return dhidden_TD


def check_draft(rng: np.random.Generator, draft: int, q_V: np.ndarray, p_V: np.ndarray) -> int:
    """What passes is min(p, q); what is drawn after a rejection is what that lacks. Together p."""
    if rng.random() * q_V[draft] < p_V[draft]:  # min(1, p/q), without dividing
        return draft
    rest = np.maximum(p_V - q_V, 0)
    return int(rng.choice(len(p_V), p=rest / rest.sum()))


def tokens_per_step(acceptance: float, n_drafts: int) -> float:
    """Draft k counts only if all before it have passed: a^k. The model's own token comes in any case: a^0."""
    return float(sum(acceptance**k for k in range(n_drafts + 1)))


def rows_to_keep(n_read: int, n_accepted: int) -> tuple[int, int]:
    """The certain token and the accepted drafts stay; the module keeps rows whose hidden part was real."""
    return n_read + 1 + n_accepted, n_read


def mtp_from_an_empty_file(
    hidden_TD: np.ndarray,
    token_S: np.ndarray,
    document_S: np.ndarray,
    embed_tokens_VD: np.ndarray,
    lm_head_VD: np.ndarray,
    weights: dict[str, np.ndarray],
    block: Callable,
) -> tuple[np.ndarray, float]:
    """Row i joins hidden row i and token i + 1 and is asked for token i + 2; it stands where its hidden row stands."""
    n_rows = len(token_S) - 2
    words = embed_tokens_VD[token_S[1:-1]]
    pair = join_pair(hidden_TD[:n_rows], words, weights["enorm"], weights["hnorm"], weights["eh_proj"])
    rows = _norm(block(pair, np.arange(n_rows)), weights["shared_head.norm"])
    logits = rows @ lm_head_VD.T
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    counted = document_S[:-2] == document_S[2:]
    paid = -log_prob[np.arange(n_rows), token_S[2:]][counted].sum()
    return logits, float(paid / np.sum(document_S[:-1] == document_S[1:]))
