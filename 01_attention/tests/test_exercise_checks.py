"""The grader of the exercises names the usual wrong answers for what they are."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHECKS = load_file(Path(__file__).resolve().parent.parent / "exercise_checks.py")


def forget_projection(dy, x, weight, eps):
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return weight * dy / rms, (dy * x / rms).reshape(-1, x.shape[-1]).sum(axis=0)


def post_norm(x, norms, attention, mlp):
    x = norms[0](x + attention(x))
    return norms[1](x + mlp(x))


def change_in_place(x, norms, attention, mlp):
    x += attention(norms[0](x))
    return x + mlp(norms[1](x))


WRONG = [
    ("score_keys", lambda q, k: q @ np.swapaxes(k, -1, -2), "not scaled"),
    ("score_keys", lambda q, k: q @ np.swapaxes(k, -1, -2) / q.shape[-1], "square root only"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool)), "add T - S"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T))), "return booleans"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool), T - S - 1), "<=, not <"),
    ("causal_mask", lambda S, T: np.tril(np.ones((S, T), dtype=bool), 3), "should be"),
    ("softmax_backward", lambda dprob, prob: prob * dprob, "the mean is missing"),
    ("softmax_backward", lambda dprob, prob: prob * (1 - prob) * dprob, "only the diagonal"),
    ("split_heads", lambda x, H: x.reshape(len(x), H, x.shape[1], -1), "pieces of several tokens"),
    ("split_heads", lambda x, H: x.reshape(*x.shape[:2], H, -1), "exchange S and H"),
    ("split_heads", lambda x, H: x.tolist(), "return an array"),
    ("rms_norm_backward", forget_projection, "second term is missing"),
    ("block_forward", post_norm, "post-norm"),
    ("block_forward", change_in_place, "changed in place"),
]


@pytest.mark.parametrize(("exercise", "answer", "sentence"), WRONG)
def test_a_usual_wrong_answer_is_recognised(exercise, answer, sentence):
    with pytest.raises(AssertionError, match=sentence):
        getattr(CHECKS, f"check_{exercise}")(answer)
