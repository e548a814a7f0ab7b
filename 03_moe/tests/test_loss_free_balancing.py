"""The bias: it chooses, it does not count, and it moves the right way at the right time."""

import numpy as np
import pytest
from expert_routing import sigmoid
from loss_free_balancing import (
    loss_free_gate_backward,
    loss_free_gate_forward,
    max_violation,
    settle_bias,
    update_bias,
    update_bias_in_proportion,
)


@pytest.mark.parametrize(("n_tokens", "n_experts", "n_activated"), [(5, 7, 3), (1, 3, 2), (3, 2, 2)])
def test_the_gradient_of_the_scores_is_the_central_difference(n_tokens, n_experts, n_activated, rng, check_gradients):
    score, bias = rng.uniform(0.1, 0.9, size=(n_tokens, n_experts)), rng.normal(size=n_experts) * 0.2
    pull = rng.normal(size=(n_tokens, n_activated))
    dscore = loss_free_gate_backward(pull, loss_free_gate_forward(score, bias, n_activated)[1])
    check_gradients(
        lambda: float((loss_free_gate_forward(score, bias, n_activated)[0].gate_NA * pull).sum()),
        {"score": score, "bias": bias},
        {"score": dscore, "bias": np.zeros_like(bias)},
    )


def test_the_bias_chooses_but_does_not_count():
    score = np.array([[0.9, 0.6, 0.2], [0.8, 0.7, 0.1]])
    plain, _ = loss_free_gate_forward(score, np.zeros(3), 2)
    nudged, _ = loss_free_gate_forward(score, np.array([-0.05, 0.03, 0.01]), 2)  # no choice flips
    assert (nudged.index_NA == plain.index_NA).all()
    np.testing.assert_array_equal(nudged.gate_NA, plain.gate_NA)  # bit for bit
    flipped, _ = loss_free_gate_forward(score, np.array([-0.5, 0.0, 0.5]), 2)
    np.testing.assert_allclose(flipped.gate_NA[0], [0.2 / 0.8, 0.6 / 0.8])


def test_a_bias_that_is_the_same_for_all_changes_nothing(rng):
    score = rng.uniform(size=(5, 7))
    one, other = (loss_free_gate_forward(score, np.full(7, b), 3)[0] for b in (0.0, 4.0))
    assert (one.index_NA == other.index_NA).all()


def test_the_bias_of_an_overloaded_expert_falls_and_that_of_an_idle_one_rises():
    bias = np.array([0.5, 0.1, 0.0, -0.2])
    moved = update_bias(bias, np.array([6, 3, 2, 1]), 0.001)
    np.testing.assert_allclose(moved - bias, [-0.001, 0, 0.001, 0.001], atol=1e-15)
    np.testing.assert_array_equal(bias, [0.5, 0.1, 0.0, -0.2])


def test_the_step_is_the_speed_however_large_the_violation():
    slight, gross = (update_bias(np.zeros(3), np.array(load), 0.01) for load in ([101, 99, 100], [300, 0, 0]))
    np.testing.assert_array_equal(slight, [-0.01, 0.01, 0.0])
    np.testing.assert_array_equal(gross, [-0.01, 0.01, 0.01])
    np.testing.assert_allclose(update_bias_in_proportion(np.zeros(3), np.array([300, 0, 0]), 0.01), [-0.02, 0.01, 0.01])


def test_a_forward_leaves_the_bias_alone(rng):
    bias = rng.normal(size=7)
    kept = bias.copy()
    loss_free_gate_forward(rng.uniform(size=(5, 7)), bias, 3)
    np.testing.assert_array_equal(bias, kept)


def test_the_counts_of_the_whole_batch_move_the_bias_once():
    parts = np.array([[3, 1, 2], [0, 4, 2]])  # two micro-batches, each skewed, whose sum has another skew
    whole = update_bias(np.zeros(3), parts.sum(axis=0), 0.1)
    np.testing.assert_allclose(whole, [0.1, -0.1, 0.0])
    piecewise = update_bias(update_bias(np.zeros(3), parts[0], 0.1), parts[1], 0.1)
    assert np.abs(piecewise - whole).max() > 0.05


def test_the_bias_keeps_its_dtype_and_float32_holds_the_small_steps():
    bias = np.full(3, 0.7, dtype=np.float32)
    moved = update_bias(bias, np.array([3, 0, 0]), 0.001)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, [0.699, 0.701, 0.701], rtol=1e-6)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    stuck = update_bias(bias.astype(ml_dtypes.bfloat16), np.array([3, 0, 0]), 0.001)
    assert (stuck == bias.astype(ml_dtypes.bfloat16)).all()


def test_max_violation_is_zero_in_balance_and_known_at_collapse():
    assert max_violation(np.array([4, 4, 4])) == 0
    assert max_violation(np.array([6, 3, 2, 1])) == 1.0
    assert max_violation(np.array([10, 10, 0, 0, 0, 0, 0, 0])) == 8 / 2 - 1


def test_the_thermostat_settles_a_skewed_router_without_touching_its_scores(rng):
    score = sigmoid(rng.normal(size=(512, 8)) + np.linspace(1.5, -1.5, 8))
    biases, loads = settle_bias(score, np.zeros(8), 2, 0.01, 150)
    assert max_violation(loads[0]) > 1.0
    assert max(max_violation(load) for load in loads[-20:]) < 0.2
    assert biases[-1][0] < 0 < biases[-1][-1]
    assert (loads.sum(axis=1) == 1024).all()


def test_the_wrong_sign_would_starve_experts(rng):
    score = sigmoid(rng.normal(size=(512, 8)) + np.linspace(1.5, -1.5, 8))
    _, loads = settle_bias(score, np.zeros(8), 2, -0.05, 150)
    assert (loads[0] == 0).sum() == 0
    assert (loads[-1] == 0).sum() >= 4
    assert max_violation(loads[-1]) > max_violation(loads[0])
