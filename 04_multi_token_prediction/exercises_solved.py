"""The answers to exercises.py, by the chapter's own functions; read them after your own attempt."""

import numpy as np
from cross_entropy import cross_entropy_backward, cross_entropy_forward
from mtp_module import MtpWeights, combine_forward
from mtp_pretraining import depth_targets
from speculative_decoding import expected_tokens_per_step, verify_drafts


def further_targets(tokens_BS: np.ndarray, depth: int, document_BS: np.ndarray) -> np.ndarray:
    """Targets of a depth, -100 across documents."""
    return depth_targets(tokens_BS, depth, document_BS)


def join_pair(
    hidden_BSD: np.ndarray, embedding_BSD: np.ndarray, enorm_D: np.ndarray, hnorm_D: np.ndarray, eh_proj: np.ndarray
) -> np.ndarray:
    """Both inputs normed apart, embedding first, projected."""
    weights = MtpWeights(enorm_D, hnorm_D, eh_proj, np.ones_like(enorm_D))
    return combine_forward(weights, hidden_BSD, embedding_BSD, "released")[0]


def loss_gradient(logits_NV: np.ndarray, target_N: np.ndarray, divisor: float) -> np.ndarray:
    """Probability minus one-hot, over the divisor."""
    return cross_entropy_backward(1.0, cross_entropy_forward(logits_NV, target_N, divisor)[1])


def check_draft(rng: np.random.Generator, draft: int, q_V: np.ndarray, p_V: np.ndarray) -> int:
    """Accept by min(1, p/q), else draw from the residual."""
    verdict = verify_drafts(rng, np.array([[draft]]), q_V[None, None], np.stack([p_V, p_V])[None])
    return int(verdict.token_NK1[0, 0])


def tokens_per_step(acceptance: float, n_drafts: int) -> float:
    """1 + a + ... + a^K."""
    return expected_tokens_per_step(acceptance, n_drafts)


def rows_to_keep(n_read: int, n_accepted: int) -> tuple[int, int]:
    """The certain token and the accepted drafts stay; the module keeps rows with a real hidden part."""
    return n_read + 1 + n_accepted, n_read
