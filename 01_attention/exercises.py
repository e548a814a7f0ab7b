"""Build a transformer block, forward and backward, and have every step graded.

    make check CH=01            (or: python -m utils.exercises 01, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md; "..." stands for any axes in front. Everything is float64 NumPy.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

from collections.abc import Callable

import numpy as np


def score_keys(query_SK: np.ndarray, key_TK: np.ndarray) -> np.ndarray:
    """Multiply every query with every key, and undo the growth of the sum with its length.

    Args: query [..., S, K], key [..., T, K].
    Returns: score [..., S, T].
    Notebook: self_attention; arXiv:1706.03762, Eq. (1), the part inside the softmax.
    """
    raise NotImplementedError


def softmax_backward(dprob_ST: np.ndarray, prob_ST: np.ndarray) -> np.ndarray:
    """Send the gradient back through the softmax over the last axis, given its output.

    Args: both [..., T].
    Returns: dscore [..., T].
    Notebooks: self_attention, and surprise of chapter 00.
    """
    raise NotImplementedError


def attention_backward(
    dout_SU: np.ndarray, query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray, prob_ST: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through out = prob value, where prob is the softmax of score_keys(query, key). No axes in front.

    Returns: dquery [S, K], dkey [T, K], dvalue [T, U].
    Notebook: self_attention.
    """
    raise NotImplementedError


def three_roles_backward(
    dquery_SK: np.ndarray,
    dkey_SK: np.ndarray,
    dvalue_SU: np.ndarray,
    hidden_SD: np.ndarray,
    q_proj: np.ndarray,
    k_proj: np.ndarray,
    v_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Go back through query = hidden q_proj^T, key = hidden k_proj^T, value = hidden v_proj^T.

    Args: q_proj and k_proj [K, D], v_proj [U, D].
    Returns: dhidden [S, D], dq_proj, dk_proj, dv_proj.
    Notebook: self_attention.
    """
    raise NotImplementedError


def causal_mask(n_queries: int, n_keys: int) -> np.ndarray:
    """Say which query may look at which key, when the queries are the last ones of all positions.

    Returns: bool [S, T], True where looking is allowed.
    Notebook: causal_attention; arXiv:2405.04434, Eq. (7): the sum runs from j = 1 to t, the token itself included.
    """
    raise NotImplementedError


def causal_attention_backward(
    dout_SU: np.ndarray, query_SK: np.ndarray, key_TK: np.ndarray, value_TU: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through causal attention; the queries are the last S of the T positions. Nothing was kept: start again.

    Returns: dquery [S, K], dkey [T, K], dvalue [T, U].
    Notebook: causal_attention.
    """
    raise NotImplementedError


def split_heads(joined_BSX: np.ndarray, n_heads: int) -> np.ndarray:
    """Cut each token's row into heads and bring the heads beside the batch; a head is a block of neighbouring numbers.

    Args: [B, S, H K].
    Returns: [B, H, S, K].
    Notebook: multi_head_attention.
    """
    raise NotImplementedError


def multi_head_backward(
    dout_SD: np.ndarray,
    hidden_SD: np.ndarray,
    q_proj: np.ndarray,
    k_proj: np.ndarray,
    v_proj: np.ndarray,
    o_proj: np.ndarray,
    n_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Go back through a causal multi-head layer, one text, from its input and weights alone.

    Args: q_proj and k_proj [H K, D], v_proj [H U, D], o_proj [D, H U]; rows h K to (h + 1) K belong to head h.
    Returns: dhidden [S, D], dq_proj, dk_proj, dv_proj, do_proj.
    Notebook: multi_head_attention.
    """
    raise NotImplementedError


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Send the gradient back through y = weight x / sqrt(mean(x^2) + eps).

    Args: dy and x [..., D], weight [D].
    Returns: dx [..., D], dweight [D].
    Notebook: rms_norm; arXiv:1910.07467, Eq. (4).
    """
    raise NotImplementedError


def swiglu_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, gate_proj: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Go back through y = (silu(x gate_proj^T) (x up_proj^T)) down_proj^T.

    Args: gate_proj and up_proj [F, D], down_proj [D, F].
    Returns: dx [N, D], dgate_proj, dup_proj, ddown_proj.
    Notebook: swiglu.
    """
    raise NotImplementedError


def block_forward(x: np.ndarray, norms: tuple[Callable, Callable], attention: Callable, mlp: Callable) -> np.ndarray:
    """Put a pre-norm block together from its four parts, each a function of one array.

    Args: x [..., D]; norms holds the one before the attention and the one before the MLP.
    Returns: the stream after the block, [..., D].
    Notebook: transformer_block; arXiv:2412.19437, Figure 2.
    """
    raise NotImplementedError


def block_backward(
    dout: np.ndarray, norms_back: tuple[Callable, Callable], attention_back: Callable, mlp_back: Callable
) -> np.ndarray:
    """Send the gradient back through the block, from the way back of each of its parts.

    Args: each part's way back takes the gradient of its output and returns that of its input.
    Returns: the gradient of what came into the block, [..., D].
    Notebook: transformer_block.
    """
    raise NotImplementedError


def block_from_an_empty_file(x_SD: np.ndarray, weights: dict[str, np.ndarray], n_heads: int) -> np.ndarray:
    """Compute a whole pre-norm block for one text, from nothing but NumPy. RMSNorm has eps 1e-6.

    Args:
        weights: the released names. input_layernorm [D], self_attn.q_proj and .k_proj [H K, D], .v_proj [H U, D],
            .o_proj [D, H U], post_attention_layernorm [D], mlp.gate_proj and .up_proj [F, D], .down_proj [D, F].
    Returns: [S, D].
    Notebook: transformer_block.
    """
    raise NotImplementedError
