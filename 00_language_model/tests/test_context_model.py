"""The model with a window: its shapes, its gradients, and that it learns what a bigram cannot."""

import numpy as np
import pytest
from bigram_model import count_pairs, share_counts
from context_model import (
    ContextWeights,
    context_backward,
    context_forward,
    cut_windows,
    measure_context,
    train_context,
)
from surprise import surprise_backward, surprise_forward


def test_windows_and_the_token_after_each():
    window, target = cut_windows(np.arange(6), 3)
    assert window.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert target.tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="no window of 3"):
        cut_windows(np.arange(3), 3)


def test_two_tokens_by_pencil():
    head = np.array([[0.0], [np.log(9) / np.tanh(1)]])
    weights = ContextWeights(np.array([[0.0], [1.0]]), np.array([[1.0, -1.0]]), head)
    logits, _ = context_forward(np.array([[1, 0], [0, 0], [0, 1]]), weights)
    np.testing.assert_allclose(logits, np.log([[1, 9], [1, 1], [1, 1 / 9]]), atol=1e-14)


def test_a_window_of_another_length_is_refused(rng):
    with pytest.raises(ValueError, match="a window of 2 tokens, but up_proj reads 3"):
        context_forward(np.zeros((1, 2), dtype=int), ContextWeights.init(rng, 5, 3, 2, 7))


@pytest.mark.parametrize(("V", "T", "D", "F", "N"), [(5, 3, 2, 7, 11), (2, 1, 1, 1, 1)])
def test_the_gradients_agree_with_central_differences(V, T, D, F, N, rng, check_gradients):
    weights, window = ContextWeights.init(rng, V, T, D, F), rng.integers(V, size=(N, T))
    target = rng.integers(V, size=N)

    def loss():
        return surprise_forward(context_forward(window, weights)[0], target)[0]

    logits, cache = context_forward(window, weights)
    gradients = context_backward(surprise_backward(surprise_forward(logits, target)[1]), cache)
    check_gradients(loss, vars(weights), vars(gradients))


def test_the_order_of_the_window_matters(rng):
    weights = ContextWeights.init(rng, 5, 2, 3, 7)
    one, other = (context_forward(np.array([w]), weights)[0] for w in ([1, 4], [4, 1]))
    assert np.abs(one - other).max() > 1e-3


def test_it_learns_what_no_bigram_can():
    """Each token is the sum of the two before it, modulo 3: certain for who sees two, a third each for who sees one."""
    token = [0, 1]
    rng = np.random.default_rng(0)
    for _ in range(600):  # now and then a fresh start, so that all nine pairs occur
        token.append((token[-1] + token[-2]) % 3 if rng.random() < 0.9 else int(rng.integers(3)))
    token = np.array(token)
    counts = count_pairs(token, 3)
    bigram = -np.sum(counts * np.log(share_counts(counts))) / counts.sum()
    weights, _ = train_context(token, 2, V=3, n_steps=150, D=3, F=16, rate=0.03)
    assert bigram > 1.0
    assert measure_context(token, weights, 2) < 0.5
