"""Softmax, entropy, cross-entropy: honest guesses pay least, and gradients are right."""

import numpy as np
import pytest
from surprise import (
    cross_entropy,
    entropy,
    in_bits,
    perplexity,
    softmax_backward,
    softmax_forward,
    surprise_backward,
    surprise_forward,
)


def test_three_tokens_by_pencil():
    logits = np.log([[2.0, 1.0, 1.0]])
    np.testing.assert_allclose(softmax_forward(logits)[0], [[0.5, 0.25, 0.25]], rtol=1e-14)
    assert entropy(softmax_forward(logits)[0])[0] == pytest.approx(1.5 * np.log(2))
    loss, cache = surprise_forward(logits, np.array([0]))
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(surprise_backward(cache), [[-0.5, 0.25, 0.25]], rtol=1e-14)


def test_huge_logits_do_not_overflow_and_a_shift_changes_nothing(rng):
    logits = rng.normal(size=(3, 5))
    np.testing.assert_allclose(softmax_forward(logits + 1e4)[0], softmax_forward(logits)[0], rtol=1e-10)
    assert surprise_forward(np.array([[1e4, 0.0]]), np.array([1]))[0] == 1e4


def test_no_guess_pays_less_than_the_truth(rng):
    true, guess = rng.dirichlet(np.ones(5), size=7), rng.dirichlet(np.ones(5), size=7)
    assert (cross_entropy(true, guess) > entropy(true)).all()
    np.testing.assert_allclose(cross_entropy(true, true), entropy(true), rtol=1e-14)


def test_what_never_happens_costs_nothing_and_the_impossible_everything():
    true = np.array([1.0, 0.0])
    assert entropy(true) == 0
    assert cross_entropy(true, np.array([1.0, 0.0])) == 0
    assert cross_entropy(np.array([0.5, 0.5]), true) == np.inf


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    loss, _ = surprise_forward(np.zeros((3, 7)), np.array([0, 3, 6]))
    assert loss == pytest.approx(np.log(7))
    assert perplexity(loss) == pytest.approx(7)
    assert in_bits(np.log(8)) == pytest.approx(3)


def test_the_loss_is_the_cross_entropy_with_a_one_hot_truth(rng):
    logits, target = rng.normal(size=(2, 3, 5)), rng.integers(5, size=(2, 3))
    paid = cross_entropy(np.eye(5)[target], softmax_forward(logits)[0])
    assert surprise_forward(logits, target)[0] == pytest.approx(paid.mean(), rel=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (1, 1)])
def test_the_gradients_agree_with_central_differences(shape, rng, check_gradients):
    logits, dprob = rng.normal(size=shape), rng.normal(size=shape)
    target = rng.integers(shape[-1], size=shape[:-1])
    gradient = surprise_backward(surprise_forward(logits, target)[1])
    check_gradients(lambda: surprise_forward(logits, target)[0], {"logits": logits}, {"logits": gradient})
    gradient = softmax_backward(dprob, softmax_forward(logits)[1])
    check_gradients(lambda: np.sum(dprob * softmax_forward(logits)[0]), {"logits": logits}, {"logits": gradient})


def test_the_pushes_on_the_logits_sum_to_zero(rng):
    gradient = surprise_backward(surprise_forward(rng.normal(size=(3, 5)), np.array([4, 0, 2]))[1])
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-16)


def test_targets_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match=r"need targets \(3,\), got \(2,\)"):
        surprise_forward(np.zeros((3, 5)), np.array([0, 1]))
    for target in (-1, 5):  # -1 would count from the end, in silence
        with pytest.raises(ValueError, match=r"leave the vocabulary 0\.\.4"):
            surprise_forward(np.zeros((1, 5)), np.array([target]))
