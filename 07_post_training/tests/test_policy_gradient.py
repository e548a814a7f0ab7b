"""The estimate of the gradient: right on average, quieter with a baseline; and what a careless rule teaches."""

import numpy as np
import pytest
from policy_gradient import (
    estimate_gradients,
    exact_gradient,
    leave_one_out,
    mean_baseline,
    measure_noise,
    no_baseline,
    reinforce_backward,
    reinforce_forward,
    reinforce_step,
)
from rewards import sorting_reward
from token_policy import Adam, PolicyWeights, log_softmax, sorting_problems

REWARD = np.array([11.0, 10.0, 10.0, 14.0])
LOGITS = np.log([0.5, 0.25, 0.125, 0.125])


def test_the_exact_gradient_agrees_with_central_differences(rng, check_gradients):
    logits, reward = rng.standard_normal(5), rng.standard_normal(5)
    check_gradients(
        lambda: float(np.exp(log_softmax(logits)) @ reward), {"z": logits}, {"z": exact_gradient(logits, reward)}
    )


def test_the_pencil_example_comes_out():
    np.testing.assert_allclose(exact_gradient(LOGITS, REWARD), [0, -0.25, -0.125, 0.375], atol=1e-14)


@pytest.mark.parametrize("baseline", [no_baseline, leave_one_out])
def test_the_estimate_is_right_on_average(baseline):
    estimate = estimate_gradients(np.random.default_rng(3), LOGITS, REWARD, baseline, 20_000, 4)
    off, _ = measure_noise(estimate, exact_gradient(LOGITS, REWARD))
    assert off < 4  # standard errors, the worst of four


def test_a_mean_that_holds_the_own_reward_shrinks_the_gradient_by_one_over_m():
    estimate = estimate_gradients(np.random.default_rng(3), LOGITS, REWARD, mean_baseline, 20_000, 4)
    exact = exact_gradient(LOGITS, REWARD)
    assert measure_noise(estimate, exact)[0] > 20
    assert measure_noise(estimate, exact * 3 / 4)[0] < 4


def test_a_baseline_takes_most_of_the_variance_away():
    loud, calm = (
        measure_noise(estimate_gradients(np.random.default_rng(5), LOGITS, REWARD, b, 5_000, 4), np.zeros(4))[1]
        for b in (no_baseline, leave_one_out)
    )
    assert calm < loud / 20


def test_leaving_one_out_is_the_mean_of_the_others(rng):
    reward = rng.standard_normal((3, 5))
    want = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in reward]
    np.testing.assert_allclose(leave_one_out(reward), want, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(reward[:, :1])


def test_the_loss_gives_every_written_token_the_advantage_of_its_answer(rng, check_gradients):
    logp, advantage = -rng.random((3, 5)), rng.standard_normal(3)
    written = np.arange(5) < np.array([5, 2, 3])[:, None]
    _, cache = reinforce_forward(logp, advantage, written)
    dlogp = reinforce_backward(1.0, cache)
    check_gradients(lambda: reinforce_forward(logp, advantage, written)[0], {"logp": logp}, {"logp": dlogp})
    np.testing.assert_allclose(dlogp, -advantage[:, None] * written / 3)


def test_a_step_asks_the_rule_with_each_answers_own_question(rng):
    weights, asked = PolicyWeights.init(rng, hidden=5), []

    def rule(question, text):
        asked.append(question)
        return sorting_reward(question, text)

    train, _ = sorting_problems()
    reinforce_step(weights, Adam(weights), train[:3], rng, rule, leave_one_out, n_answers=2)
    want = ["".join(str(t - 3) for t in row[:3]) + ">" for row in train[:3]]
    assert asked == [q for q in want for _ in range(2)]
