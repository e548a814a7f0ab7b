"""The bigram model: counting and descent come to the same table."""

import numpy as np
import pytest
from bigram_model import bigram_backward, bigram_forward, count_pairs, share_counts, train_bigram, write_tokens
from surprise import softmax_forward


def test_pairs_of_a_word_by_pencil():
    pairs = count_pairs(np.array([0, 1, 2, 3, 1, 2, 4, 0, 3]), 5)  # t h e _ h e a t _
    assert pairs[0].tolist() == [0, 1, 0, 1, 0]
    assert pairs[1].tolist() == [0, 0, 2, 0, 0]
    assert pairs.sum() == 8


def test_shares_sum_to_one_and_smoothing_leaves_nothing_impossible():
    shares = share_counts(np.array([[3.0, 1.0], [0.0, 0.0]]), smoothing=0.5)
    np.testing.assert_allclose(shares, [[0.7, 0.3], [0.5, 0.5]])
    with pytest.raises(ValueError, match="nothing ever followed token 1"):
        share_counts(np.array([[3.0, 1.0], [0.0, 0.0]]))


def test_the_first_loss_is_that_of_no_idea(rng):
    _, losses = train_bigram(rng.integers(7, size=101), 7, 1, 1.0)
    assert losses[0] == pytest.approx(np.log(7))


def test_the_gradient_agrees_with_central_differences(rng, check_gradients):
    logits, token = rng.normal(size=(5, 5)), rng.integers(4, size=23)  # token 4 never occurs
    gradient = bigram_backward(bigram_forward(logits, token)[1])
    check_gradients(lambda: bigram_forward(logits, token)[0], {"logits": logits}, {"logits": gradient})
    assert not gradient[4].any()


def test_at_the_counts_there_is_no_slope(rng):
    token = rng.integers(3, size=301)
    shares = share_counts(count_pairs(token, 3))
    gradient = bigram_backward(bigram_forward(np.log(shares), token)[1])
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_descent_finds_the_counts(rng):
    token = rng.choice(3, size=401, p=[0.2, 0.3, 0.5])
    table, losses = train_bigram(token, 3, 300, 3.0)
    np.testing.assert_allclose(softmax_forward(table)[0], share_counts(count_pairs(token, 3)), atol=1e-6)
    assert losses[-1] < losses[0]


def test_writing_draws_by_the_probabilities_and_temperature_sharpens(rng):
    logits = np.log([0.6, 0.3, 0.1])
    for temperature, want in ((1.0, [0.6, 0.3, 0.1]), (0.5, np.array([36, 9, 1]) / 46)):
        tokens = write_tokens(lambda so_far: logits, [2], 5000, rng, temperature)
        assert tokens[0] == 2
        share = np.bincount(tokens[1:], minlength=3) / 5000
        assert np.abs(share - want).max() < 5 * np.sqrt(0.25 / 5000)  # five standard errors


def test_each_token_is_asked_for_with_all_before_it(rng):
    asked = []

    def next_logits(so_far):
        asked.append(list(so_far))
        return np.array([0.0, 50.0])

    assert write_tokens(next_logits, [0], 3, rng) == [0, 1, 1, 1]
    assert asked == [[0], [0, 1], [0, 1, 1]]
