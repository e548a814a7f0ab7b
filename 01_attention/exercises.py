"""Six functions to fill in. Read the docstring, write the body, then:  make check CH=01

Only NumPy, a few lines each. The hints go from a nudge to nearly the answer: stop reading as soon as you can.
Letters: B batch, S queries, T keys, D model width, H heads, K key width. "..." stands for any axes in front.
"""

from collections.abc import Callable

import numpy as np


def score_keys(query_SK: np.ndarray, key_TK: np.ndarray) -> np.ndarray:
    """Multiply every query with every key, and undo the growth of the sum with its length.

        score = query key^T / sqrt(K)

    Args: query [..., S, K], key [..., T, K].     Returns: score [..., S, T].
    Source: arXiv:1706.03762, Eq. (1), the part inside the softmax.

    Hint 1: the spread of a sum of K independent products of order one is sqrt(K); that is all you divide by.
    Hint 2: with axes in front, `.T` would turn all of them around; swap the last two only.
    Hint 3: `np.swapaxes(key_TK, -1, -2)` is [..., K, T], and @ multiplies the last two axes of stacks of matrices.
    """
    raise NotImplementedError


def causal_mask(n_queries: int, n_keys: int) -> np.ndarray:
    """Say which query may look at which key, when the queries are the last ones of all positions.

        mask[s, t] = True  where key t is not later than query s

    Args: S and T, with T >= S: the first T - S keys come from a cache.     Returns: bool [S, T].
    Source: arXiv:2405.04434, Eq. (7): the sum runs from j = 1 to t, the token itself included.

    Hint 1: with S = 1 and T = 5 the query is the newest token. It may look at everything.
    Hint 2: query s stands at position s + T - S, key t at position t. Compare positions.
    Hint 3: a column of query positions, [:, None], against a row of key positions, [None, :], both from np.arange.
    """
    raise NotImplementedError


def softmax_backward(dprob_ST: np.ndarray, prob_ST: np.ndarray) -> np.ndarray:
    """Send the gradient back through the softmax, given its output.

        dscore_i = sum_j dprob_j d prob_j / d score_i         d prob_j / d score_i = prob_j ((i == j) - prob_i)

    Args: both [..., T]; the softmax ran over the last axis.     Returns: dscore [..., T].
    Source: work it out from prob_j = exp(score_j) / sum_k exp(score_k).

    Hint 1: raising one share lowers the others, so a gradient that is the same for all shares must give nothing.
    Hint 2: insert the second formula in the first and split the sum in two: one term with i == j, one with all j.
    Hint 3: the term with all j is prob_i times the mean of dprob, weighted by the shares.
    """
    raise NotImplementedError


def split_heads(joined_BSX: np.ndarray, n_heads: int) -> np.ndarray:
    """Cut each token's row into heads and bring the heads beside the batch.

        [B, S, H K]  to  [B, H, S, K]         head h of a token is its numbers h K to (h + 1) K

    Source: arXiv:2405.04434, Eq. (4)-(6).

    Hint 1: two operations: one that cuts an axis in two, one that changes the order of the axes.
    Hint 2: cut first. Which of the two new axes varies slower, the head or the place inside the head?
    Hint 3: after the cut the axes are B, S, H, K; exchange the middle ones.
    """
    raise NotImplementedError


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Send the gradient back through y = weight * x / sqrt(mean(x^2) + eps).

        dx = (g - x_hat mean(g x_hat)) / rms         g = weight dy,  x_hat = x / rms,  rms = sqrt(mean(x^2) + eps)

    Args: dy and x [..., D], weight [D].     Returns: dx [..., D], dweight [D].
    Source: differentiate arXiv:1910.07467, Eq. (4); x stands in the numerator and inside the root.

    Hint 1: compute rms and x_hat again from x, keep the last axis (keepdims) so that they broadcast.
    Hint 2: all tokens share one weight. What happens to gradients that meet in one parameter?
    Hint 3: dweight is dy * x_hat, summed over every axis but the last: reshape to (-1, D), then sum(axis=0).
    """
    raise NotImplementedError


def block_forward(x: np.ndarray, norms: tuple[Callable, Callable], attention: Callable, mlp: Callable) -> np.ndarray:
    """Put a pre-norm block together from its four parts, each a function of one array.

        x = x + attention(norm_1(x))
        x = x + mlp(norm_2(x))

    Args: x [..., D]; norms holds norm_1 and norm_2.     Returns: the stream after the block, [..., D].
    Source: arXiv:2412.19437, Figure 2.

    Hint 1: nothing that a part returns replaces the stream; it is added.
    Hint 2: the second line reads the x that the first line made.
    Hint 3: the norms stand inside the branch, between the stream and the part that reads it.
    """
    raise NotImplementedError
