"""Your turn: six functions of multi-token prediction. Fill in the bodies, then run `make check CH=04`.

Everything is float64 NumPy. Letters as in NOTATION.md: B batch, S tokens of a window, D model width, V vocabulary.
"""

import numpy as np


def further_targets(tokens_BS: np.ndarray, depth: int, document_BS: np.ndarray) -> np.ndarray:
    """Look up the targets of prediction depth `depth` (0 is the main model), -100 where a row must not count.

    Row i reads hidden row i and token i + depth, and is trained on token i + depth + 1. There is one row for every i
    whose target lies in the window: shape [B, S - 1 - depth]. A row counts when all its tokens are of one document.
    Documents are contiguous.

    Source: arXiv:2412.19437, Eq. (24); module mtp_pretraining.py.
    Hint 1: the targets are a slice of the tokens; how many leading columns does it leave out?
    Hint 2: contiguous documents: it is enough to compare the first and the last token of a row.
    Hint 3: np.where(document_BS[:, :n] == document_BS[:, depth + 1 :], ..., -100) with n the number of rows.
    """
    raise NotImplementedError


def join_pair(
    hidden_BSD: np.ndarray, embedding_BSD: np.ndarray, enorm_D: np.ndarray, hnorm_D: np.ndarray, eh_proj: np.ndarray
) -> np.ndarray:
    """Make the input of an MTP block from hidden rows and embeddings, as the *released* weights expect it.

        rms(x) = x / sqrt(mean(x^2) + 1e-6)             eh_proj is [D, 2D]; the result is [B, S, D]

    Source: arXiv:2412.19437, Eq. (21), and the released `model.layers.61`; module mtp_module.py.
    Hint 1: two norms, each over one input's last axis, each with its own weight.
    Hint 2: the paper prints [hidden ; embedding]; the name eh_proj says what the released columns read first.
    Hint 3: np.concatenate([e, h], axis=-1) @ eh_proj.T
    """
    raise NotImplementedError


def loss_gradient(logits_NV: np.ndarray, target_N: np.ndarray, divisor: float) -> np.ndarray:
    """Differentiate -(1/divisor) sum_n log softmax(logits_n)[target_n] by the logits; targets of -100 do not count.

    Source: arXiv:2412.19437, Eq. (24); module cross_entropy.py.
    Hint 1: by logit v the derivative of log sum exp is the probability of v.
    Hint 2: and the target's own logit appears once more, with a minus.
    Hint 3: (probability - one_hot) / divisor, zero in rows that do not count. Subtract the row's maximum before exp.
    """
    raise NotImplementedError


def check_draft(rng: np.random.Generator, draft: int, q_V: np.ndarray, p_V: np.ndarray) -> int:
    """Return the token that comes out when `draft`, drawn from q, is checked against the target's p.

    Called with many drafts from q, what comes out must be distributed as p, exactly.

    Source: arXiv:2211.17192, Algorithm 1; module speculative_decoding.py.
    Hint 1: keep the draft with probability min(1, p/q).
    Hint 2: otherwise draw from what q has offered too little of: max(p - q, 0).
    Hint 3: that does not sum to one yet; rng.choice(V, p=...) wants that it does.
    """
    raise NotImplementedError


def tokens_per_step(acceptance: float, n_drafts: int) -> float:
    """Compute the expected tokens per main pass when each of K drafts passes with probability a, independently.

    Source: arXiv:2211.17192, Eq. (1); module speculative_decoding.py.
    Hint 1: a step gives one token even if nothing passes.
    Hint 2: draft k only counts if all drafts before it passed as well.
    Hint 3: 1 + a + a^2 + ... + a^K
    """
    raise NotImplementedError


def rows_to_keep(n_read: int, n_accepted: int) -> tuple[int, int]:
    """Say how many rows (main cache, module's cache) stay after a step.

    Before the step the main cache held `n_read` rows; the last token of the text was not read yet. The module then
    drafted, the main model read that last token and all drafts, and accepted `n_accepted` of them. The module's rows
    are pairs (hidden row i, token i + 1); rows whose hidden part came from the module itself do not stay.

    Module speculative_decoding.py.
    Hint 1: the main model has read one token that was certain, besides the drafts.
    Hint 2: hidden rows of the main model existed for 0 .. n_read - 1 when the module drafted.
    Hint 3: the two numbers differ by n_accepted + 1.
    """
    raise NotImplementedError
