"""The answers to exercises.py, mostly the chapter's own functions. Read them after your own attempt passes."""

from collections.abc import Callable

import numpy as np
from causal_attention import causal_mask
from multi_head_attention import split_heads
from rms_norm import rms_norm_backward as norm_backward_from_cache
from rms_norm import rms_norm_forward
from self_attention import score_keys

__all__ = ["block_forward", "causal_mask", "rms_norm_backward", "score_keys", "softmax_backward", "split_heads"]


def softmax_backward(dprob_ST: np.ndarray, prob_ST: np.ndarray) -> np.ndarray:
    """Subtract the weighted mean, then weigh by the shares; `attend_backward` does it in the same line as the scale."""
    return prob_ST * (dprob_ST - np.sum(prob_ST * dprob_ST, axis=-1, keepdims=True))


def rms_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Recompute the forward pass, as DeepSeek-V3 does for all its norms, and go back from its cache."""
    return norm_backward_from_cache(dy, rms_norm_forward(x, weight, eps)[1])


def block_forward(x: np.ndarray, norms: tuple[Callable, Callable], attention: Callable, mlp: Callable) -> np.ndarray:
    """Add twice; each reader gets a normed copy of the stream."""
    norm_1, norm_2 = norms
    x = x + attention(norm_1(x))
    return x + mlp(norm_2(x))
