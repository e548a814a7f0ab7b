"""Build multi-token prediction, forward and backward, and have every step graded.

    make check CH=04            (or: python -m utils.exercises 04, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md. Everything is float64 NumPy; RMSNorm has eps 1e-6.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

from collections.abc import Callable

import numpy as np


def further_targets(tokens_BS: np.ndarray, depth: int, document_BS: np.ndarray) -> np.ndarray:
    """Look up the targets of a prediction depth (0 is the main model), -100 where a row must not count.

    Row i reads hidden row i and token i + depth, and is asked for token i + depth + 1. There is one row for every i
    whose target lies in the window. A row counts when all its tokens are of one document; documents are contiguous.

    Returns: [B, S - 1 - depth].
    Notebook: mtp_pretraining; arXiv:2412.19437, Eq. (24).
    """
    raise NotImplementedError


def loss_gradient(logits_NV: np.ndarray, target_N: np.ndarray, divisor: float) -> np.ndarray:
    """Differentiate -(1 / divisor) sum_n log softmax(logits_n)[target_n] by the logits; targets of -100 do not count.

    Returns: [N, V]. Notebook: cross_entropy; arXiv:2412.19437, Eq. (24).
    """
    raise NotImplementedError


def head_backward(
    hidden_ND: np.ndarray, lm_head_VD: np.ndarray, target_N: np.ndarray, divisor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate the loss of logits = hidden lm_head^T by both factors; targets and divisor as in loss_gradient.

    Returns: dhidden [N, D], dlm_head [V, D]. Notebook: cross_entropy.
    """
    raise NotImplementedError


def relu_squared_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through the network of the compact block: y = relu(x up_proj^T)^2 down_proj^T.

    Args: up_proj [F, D], down_proj [D, F]. Returns: dx [N, D], dup_proj, ddown_proj. Notebook: causal_block.
    """
    raise NotImplementedError


def look_up_backward(dx_ND: np.ndarray, token_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """Differentiate x = embed_tokens[token]: the gradient of the table, from the gradients of the rows it gave.

    Returns: [V, D]. Notebook: small_language_model.
    """
    raise NotImplementedError


def join_pair(
    hidden_SD: np.ndarray, embedding_SD: np.ndarray, enorm_D: np.ndarray, hnorm_D: np.ndarray, eh_proj: np.ndarray
) -> np.ndarray:
    """Make the input of an MTP block from hidden rows and embeddings, as the *released* weights expect it.

    Args: eh_proj [D, 2D]. Returns: [S, D].
    Notebook: mtp_module; arXiv:2412.19437, Eq. (21), and the released `model.layers.61`.
    """
    raise NotImplementedError


def join_pair_backward(
    dy_SD: np.ndarray,
    hidden_SD: np.ndarray,
    embedding_SD: np.ndarray,
    enorm_D: np.ndarray,
    hnorm_D: np.ndarray,
    eh_proj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through join_pair.

    Returns: dhidden [S, D], dembedding [S, D], deh_proj [D, 2D].
    Notebook: mtp_module.
    """
    raise NotImplementedError


def module_backward(
    dout_SD: np.ndarray,
    hidden_SD: np.ndarray,
    embedding_SD: np.ndarray,
    weights: dict[str, np.ndarray],
    block_forward: Callable,
    block_backward: Callable,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through a whole module: pair, block, norm behind the block.

    Args:
        weights: "enorm", "hnorm", "eh_proj", "shared_head.norm", as released.
        block_forward: x_SD -> (y_SD, cache). block_backward: (dy_SD, cache) -> dx_SD.
    Returns: dhidden [S, D], dembedding [S, D], dshared_head_norm [D].
    Notebook: mtp_module; arXiv:2412.19437, Eq. (21) and (22).
    """
    raise NotImplementedError


def chain_backward(
    dout_1: np.ndarray, dout_2: np.ndarray, back_1: Callable, back_2: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through two depths. Depth 1 stands on the main model's T rows and has T - 1; depth 2 has T - 2.

    Args:
        dout_k: what the shared head sends back to the output of depth k, [T - k, D].
        back_k: dout of depth k -> (dhidden [T - k, D] of the rows that it stood on, dembedding [T - k, D]).
    Returns: dhidden of the main model's rows [T, D], dembedding of depth 1, dembedding of depth 2.
    Notebook: mtp_pretraining; arXiv:2412.19437, Fig. 3.
    """
    raise NotImplementedError


def parallel_backward(dout: list[np.ndarray], back: list[Callable]) -> np.ndarray:
    """Go back through Meta's parallel heads: head k = 1, 2, ... stands on the first T - k of the main model's T rows.

    Args:
        dout: for each head what the shared head sends back to its output, [T - k, D].
        back: for each head dout -> the gradient of the rows that it stood on [T - k, D].
    Returns: dhidden of the main model's rows [T, D].
    Notebook: mtp_pretraining; arXiv:2404.19737.
    """
    raise NotImplementedError


def check_draft(rng: np.random.Generator, draft: int, q_V: np.ndarray, p_V: np.ndarray) -> int:
    """Return the token that comes out when `draft`, drawn from q, is checked against the main model's p.

    Called with many drafts from q, what comes out must be distributed as p, exactly.
    Notebook: speculative_decoding; arXiv:2211.17192, Algorithm 1.
    """
    raise NotImplementedError


def tokens_per_step(acceptance: float, n_drafts: int) -> float:
    """Compute the expected tokens per main pass when each of K drafts passes with this probability, independently.

    Notebook: speculative_decoding; arXiv:2211.17192, Eq. (1).
    """
    raise NotImplementedError


def rows_to_keep(n_read: int, n_accepted: int) -> tuple[int, int]:
    """Say how many rows (main cache, module's cache) stay after a step.

    Before the step the main cache held `n_read` rows; the last token of the text was not read yet. The module then
    drafted, the main model read that last token and all drafts, and accepted `n_accepted` of them. The module's rows
    are pairs (hidden row i, token i + 1); rows whose hidden part came from the module itself do not stay.
    Notebook: speculative_decoding.
    """
    raise NotImplementedError


def mtp_from_an_empty_file(
    hidden_TD: np.ndarray,
    token_S: np.ndarray,
    document_S: np.ndarray,
    embed_tokens_VD: np.ndarray,
    lm_head_VD: np.ndarray,
    weights: dict[str, np.ndarray],
    block: Callable,
) -> tuple[np.ndarray, float]:
    """Compute one depth for one window, from nothing but NumPy and these letters: its logits and its loss L_1.

    Args:
        hidden_TD: the main model's rows behind its last norm, for tokens 0 .. T - 1 of the S = T + 1.
        weights: "enorm", "hnorm", "eh_proj", "shared_head.norm", as released.
        block: (x_SD, position_S) -> y_SD, causal.
    Returns: logits [T - 1, V], and the loss by Eq. (24), divided by the main model's rows that count.
    Source: arXiv:2412.19437, Eq. (21)-(24).
    """
    raise NotImplementedError
