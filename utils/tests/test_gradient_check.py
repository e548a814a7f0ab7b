"""The oracle itself: it accepts the right gradient and refuses a subtly wrong one."""

import numpy as np
import pytest

from utils.gradient_check import central_difference, check_gradients, relative_error


def test_the_right_gradient_passes_and_a_missing_term_does_not(rng):
    x, w = rng.normal(size=(3, 5)), rng.normal(size=5)

    def loss():
        return float(np.tanh(x @ w).sum())

    slope = 1 - np.tanh(x @ w) ** 2
    right = {"x": slope[:, None] * w, "w": slope @ x}
    assert max(check_gradients(loss, {"x": x, "w": w}, right).values()) < 1e-8
    with pytest.raises(AssertionError, match=r"dw: relative error"):
        check_gradients(loss, {"x": x, "w": w}, {**right, "w": right["w"] * (1 + 1e-5)})


def test_a_zero_gradient_is_compared_absolutely(rng):
    x = rng.normal(size=7)
    assert check_gradients(lambda: 3.0, {"x": x}, {"x": np.zeros(7)}) == {"x": 0.0}
    with pytest.raises(AssertionError):
        check_gradients(lambda: 3.0, {"x": x}, {"x": np.full(7, 1e-3)})


def test_float32_and_mismatched_names_are_refused():
    with pytest.raises(ValueError, match="float64"):
        central_difference(lambda: 0.0, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="names differ"):
        check_gradients(lambda: 0.0, {"a": np.zeros(1)}, {"b": np.zeros(1)})
    with pytest.raises(ValueError, match="shapes differ"):
        relative_error(np.zeros(2), np.zeros(3))
