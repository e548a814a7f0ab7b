"""The small policy: its gradients, what a row may see, and that writing and scoring agree."""

import numpy as np
import pytest
from token_policy import (
    ALPHABET,
    END,
    PAD,
    Adam,
    PolicyWeights,
    decode_tokens,
    encode_text,
    log_softmax,
    measure_accuracy,
    policy_backward,
    policy_forward,
    read_windows,
    score_answers_backward,
    score_answers_forward,
    solve_problems,
    sorting_problems,
    token_log_probs_backward,
    token_log_probs_forward,
    write_answers,
)


@pytest.fixture
def weights(rng):
    """A policy of 5 hidden units that sees 3 tokens of width 2."""
    return PolicyWeights.init(rng, hidden=5, window=3, width=2)


def test_the_gradients_of_the_policy_agree_with_central_differences(weights, rng, check_gradients):
    window, dlogits = rng.integers(0, len(ALPHABET), (2, 7, 3)), rng.standard_normal((2, 7, len(ALPHABET)))
    _, cache = policy_forward(weights, window)
    check_gradients(
        lambda: float((dlogits * policy_forward(weights, window)[0]).sum()),
        weights._asdict(),
        policy_backward(dlogits, cache)._asdict(),
    )


def test_the_gradient_of_a_log_probability_is_one_hot_minus_probability(rng, check_gradients):
    logits, target, dlogp = rng.standard_normal((2, 3, 7)), rng.integers(0, 7, (2, 3)), rng.standard_normal((2, 3))
    _, cache = token_log_probs_forward(logits, target)
    dlogits = token_log_probs_backward(dlogp, cache)
    check_gradients(
        lambda: float((dlogp * token_log_probs_forward(logits, target)[0]).sum()), {"z": logits}, {"z": dlogits}
    )
    np.testing.assert_allclose(dlogits, dlogp[..., None] * (np.eye(7)[target] - np.exp(log_softmax(logits))))


def test_weights_for_tokens_become_the_gradient_of_the_whole_policy(weights, rng, check_gradients):
    tokens, dlogp = rng.integers(0, len(ALPHABET), (3, 5)), rng.standard_normal((3, 4))
    _, cache = score_answers_forward(weights, tokens)
    check_gradients(
        lambda: float((dlogp * score_answers_forward(weights, tokens)[0]).sum()),
        weights._asdict(),
        score_answers_backward(dlogp, cache)._asdict(),
    )


def test_a_row_sees_itself_and_its_past_and_no_other_document():
    tokens = np.array([[3, 4, 5, 6, 7]])
    assert read_windows(tokens, 3)[0].tolist() == [[PAD, PAD, 3], [PAD, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]
    packed = read_windows(tokens, 3, np.array([[0, 0, 1, 1, 1]]))[0]
    assert packed.tolist() == [[PAD, PAD, 3], [PAD, 3, 4], [PAD, PAD, 5], [PAD, 5, 6], [5, 6, 7]]


def test_what_was_written_is_scored_alike_afterwards(weights, rng):
    answers = write_answers(weights, sorting_problems()[0][:31], rng)
    logp, _ = score_answers_forward(weights, answers.token_BT)
    np.testing.assert_allclose(logp[answers.written_BS], answers.logp_BS[answers.written_BS], rtol=1e-12)
    assert not answers.written_BS[:, :3].any()
    assert not answers.logp_BS[~answers.written_BS].any()


def test_an_answer_ends_with_its_end_token_which_counts(weights):
    likely_end = weights._replace(head_VF=np.zeros_like(weights.head_VF))  # argmax takes token 0, padding
    answers = write_answers(likely_end, np.array([encode_text("201>")]))
    assert answers.written_BS.sum() == 4  # never ended
    rng = np.random.default_rng(0)
    answers = write_answers(likely_end, np.repeat([encode_text("201>")], 200, axis=0), rng)
    for row, written in zip(answers.token_BT[:, 4:], answers.written_BS[:, 3:]):
        end = row.tolist().index(END) + 1 if END in row else 4
        assert written.tolist() == [i < end for i in range(4)]


def test_drawn_tokens_are_distributed_as_the_policy_says(weights):
    prompt = np.repeat([encode_text("201>")], 40_000, axis=0)
    first = write_answers(weights, prompt, np.random.default_rng(1), n_new=1).token_BT[:, 4]
    prob = np.exp(log_softmax(policy_forward(weights, read_windows(prompt[:1], 3)[:, -1])[0][0]))
    share = np.bincount(first, minlength=len(prob)) / len(first)
    assert np.abs(share - prob).max() < 4 * 0.5 / np.sqrt(len(first))  # four standard errors at most


def test_questions_are_split_by_problem_and_solved_rightly():
    train, held_out = sorting_problems()
    questions = {decode_tokens(q) for q in [*train, *held_out]}
    assert (len(train), len(held_out), len(questions)) == (162, 54, 216)
    assert decode_tokens(solve_problems(np.array([encode_text("201>")]))[0]) == "201>012."


def test_adam_walks_downhill_on_two_arrays(rng):
    weights = PolicyWeights(*(rng.standard_normal(s) for s in ((2, 3), (5,), (7,), (1,))))
    adam, start = Adam(weights, 0.05), sum((w**2).sum() for w in weights)
    first = adam.step(weights, PolicyWeights(*(2 * w for w in weights)))
    np.testing.assert_allclose(weights.bias_F - first.bias_F, 0.05 * np.sign(weights.bias_F), rtol=1e-6)
    for _ in range(100):
        first = adam.step(first, PolicyWeights(*(2 * w for w in first)))
    assert sum((w**2).sum() for w in first) < 0.01 * start


def test_accuracy_counts_exact_answers(weights):
    assert measure_accuracy(weights, sorting_problems()[1]) <= 0.1  # untrained
