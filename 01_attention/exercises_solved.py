"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

from collections.abc import Callable

import numpy as np


def score_keys(query_SK: np.ndarray, key_TK: np.ndarray) -> np.ndarray:
    """Only the last two axes are turned; a sum of K products of size one has size sqrt(K), so divide by that."""
    return query_SK @ np.swapaxes(key_TK, -1, -2) / np.sqrt(query_SK.shape[-1])


def softmax_backward(dprob_ST: np.ndarray, prob_ST: np.ndarray) -> np.ndarray:
    """Shares sum to one, so only what is worth more than the mean may grow; the mean is weighted by the shares."""
    return prob_ST * (dprob_ST - np.sum(prob_ST * dprob_ST, axis=-1, keepdims=True))


def attention_backward(
    dout_SU: np.ndarray, query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray, prob_ST: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixture, softmax, product: each product hands each factor the other one; the root multiplied the score."""
    dscore_ST = softmax_backward(dout_SU @ value_TU.T, prob_ST) / np.sqrt(query_SK.shape[-1])
    return dscore_ST @ key_TK, dscore_ST.T @ query_SK, prob_ST.T @ dout_SU


def three_roles_backward(
    dquery_SK: np.ndarray,
    dkey_SK: np.ndarray,
    dvalue_SU: np.ndarray,
    hidden_SD: np.ndarray,
    q_proj: np.ndarray,
    k_proj: np.ndarray,
    v_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A row was asked with, looked at and fetched: three ways that meet, so their gradients add up."""
    dhidden_SD = dquery_SK @ q_proj + dkey_SK @ k_proj + dvalue_SU @ v_proj
    return dhidden_SD, dquery_SK.T @ hidden_SD, dkey_SK.T @ hidden_SD, dvalue_SU.T @ hidden_SD


def causal_mask(n_queries: int, n_keys: int) -> np.ndarray:
    """Query s stands at position s + T - S; compare positions, and let a token see itself."""
    return np.arange(n_keys) <= np.arange(n_keys - n_queries, n_keys)[:, None]


def _causal_shares(query_SK: np.ndarray, key_TK: np.ndarray) -> np.ndarray:
    """Scores that point ahead become minus infinity before the softmax, so that both of its sums stop."""
    mask_ST = causal_mask(len(query_SK), len(key_TK))
    score_ST = np.where(mask_ST, score_keys(query_SK, key_TK), -np.inf)
    raised_ST = np.exp(score_ST - score_ST.max(axis=1, keepdims=True))
    return raised_ST / raised_ST.sum(axis=1, keepdims=True)


def causal_attention_backward(
    dout_SU: np.ndarray, query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nothing new on the way back: where the mask made a share of zero, the factor prob makes the gradient zero."""
    return attention_backward(dout_SU, query_SK, key_TK, value_TU, _causal_shares(query_SK, key_TK))


def split_heads(joined_BSX: np.ndarray, n_heads: int) -> np.ndarray:
    """Cut first, the head axis outside, since a head is a block; then exchange tokens and heads."""
    B, S, _ = joined_BSX.shape
    return joined_BSX.reshape(B, S, n_heads, -1).transpose(0, 2, 1, 3)


def multi_head_backward(
    dout_SD: np.ndarray,
    hidden_SD: np.ndarray,
    q_proj: np.ndarray,
    k_proj: np.ndarray,
    v_proj: np.ndarray,
    o_proj: np.ndarray,
    n_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same doors in reverse: cut what o_proj hands back, attend backwards in each head, lay end to end again."""
    query, key, value = (split_heads((hidden_SD @ w.T)[None], n_heads)[0] for w in (q_proj, k_proj, v_proj))
    dheads = split_heads((dout_SD @ o_proj)[None], n_heads)[0]
    outs, parts = [], []
    for q, k, v, dhead in zip(query, key, value, dheads):
        outs.append(_causal_shares(q, k) @ v)
        parts.append(causal_attention_backward(dhead, q, k, v))
    dquery, dkey, dvalue = (np.concatenate(part, axis=1) for part in zip(*parts))
    gradients = three_roles_backward(dquery, dkey, dvalue, hidden_SD, q_proj, k_proj, v_proj)
    return *gradients, dout_SD.T @ np.concatenate(outs, axis=1)


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """x is numerator and stands in the root: what points along x is taken out. All rows share the weight: a sum."""
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    x_hat, g = x / rms, weight * dy
    dx = (g - x_hat * np.mean(g * x_hat, axis=-1, keepdims=True)) / rms
    return dx, (dy * x_hat).reshape(-1, len(weight)).sum(axis=0)


def swiglu_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, gate_proj: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The product hands each branch the other one; silu's slope by the product rule; the branches meet in x."""
    gate_NF, up_NF = x_ND @ gate_proj.T, x_ND @ up_proj.T
    s_NF = 1 / (1 + np.exp(-gate_NF))
    dproduct_NF = dy_ND @ down_proj
    dup_NF = dproduct_NF * gate_NF * s_NF
    dgate_NF = dproduct_NF * up_NF * (s_NF + gate_NF * s_NF * (1 - s_NF))
    dx_ND = dgate_NF @ gate_proj + dup_NF @ up_proj
    return dx_ND, dgate_NF.T @ x_ND, dup_NF.T @ x_ND, dy_ND.T @ (gate_NF * s_NF * up_NF)


def block_forward(x: np.ndarray, norms: tuple[Callable, Callable], attention: Callable, mlp: Callable) -> np.ndarray:
    """Add twice; each reader gets a normed copy of the stream as it is then."""
    norm_1, norm_2 = norms
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))


def block_backward(
    dout: np.ndarray, norms_back: tuple[Callable, Callable], attention_back: Callable, mlp_back: Callable
) -> np.ndarray:
    """Last addition first. At each, the gradient goes straight on and through the branch, and both add up."""
    norm_1_back, norm_2_back = norms_back
    dbetween = dout + norm_2_back(mlp_back(dout))
    return dbetween + norm_1_back(attention_back(dbetween))


def block_from_an_empty_file(x_SD: np.ndarray, weights: dict[str, np.ndarray], n_heads: int) -> np.ndarray:
    """Norm, heads, addition; norm, gated network, addition."""

    def norm(x, name):
        return weights[name] * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def attention(x):
        cut = (np.split(x @ weights[f"self_attn.{n}_proj"].T, n_heads, axis=1) for n in "qkv")
        heads = [_causal_shares(q, k) @ v for q, k, v in zip(*cut)]
        return np.concatenate(heads, axis=1) @ weights["self_attn.o_proj"].T

    def mlp(x):
        gate, up = x @ weights["mlp.gate_proj"].T, x @ weights["mlp.up_proj"].T
        return (gate / (1 + np.exp(-gate)) * up) @ weights["mlp.down_proj"].T

    x_SD = x_SD + attention(norm(x_SD, "input_layernorm"))
    return x_SD + mlp(norm(x_SD, "post_attention_layernorm"))
