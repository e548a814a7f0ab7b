"""The rules of descent: what a rate may be, what Adam does and does not care for."""

import numpy as np
import pytest
from descent import (
    adam_step,
    clip_gradients,
    momentum_step,
    plain_step,
    valley_backward,
    valley_forward,
    walk_valley,
)


def test_a_rate_over_two_by_the_steepest_slope_explodes():
    below = walk_valley(lambda w, d, s: (plain_step(w, d, 0.0199), s), 500)
    above = walk_valley(lambda w, d, s: (plain_step(w, d, 0.0201), s), 500)
    assert valley_forward(below[-1]) < valley_forward(below[0])
    assert abs(above[-1, 1]) > abs(above[0, 1])


def test_the_slope_of_the_valley_agrees_with_central_differences(check_gradients):
    w = np.array([0.3, -0.2])
    check_gradients(lambda: valley_forward(w), {"w": w}, {"w": valley_backward(w)})


def test_momentum_adds_up_what_agrees():
    weights, speed = {"w": np.zeros(1)}, None
    for _ in range(200):
        weights, speed = momentum_step(weights, {"w": np.ones(1)}, speed, 0.0, keep=0.9)
    assert speed["w"][0] == pytest.approx(10)


def test_the_first_step_of_adam_has_the_length_of_the_rate_for_every_slope():
    weights, _ = adam_step({"w": np.zeros(3)}, {"w": np.array([100.0, 0.01, -7.0])}, None, 0.3)
    np.testing.assert_allclose(weights["w"], [-0.3, -0.3, 0.3], rtol=1e-5)


def test_adam_does_not_see_a_factor_on_the_loss(rng):
    slopes = rng.normal(size=(17, 5))
    ends = []
    for factor in (1.0, 1000.0):
        weights, moments = {"w": np.zeros(5)}, None
        for dw in slopes:
            weights, moments = adam_step(weights, {"w": factor * dw}, moments, 0.1)
        ends.append(weights["w"])
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_decay_acts_beside_adam_not_through_it():
    """A weight without a slope shrinks by rate times decay; through the gradient it would move by the whole rate."""
    weights, _ = adam_step({"w": np.array([2.0])}, {"w": np.zeros(1)}, None, 0.1, decay=0.5)
    assert weights["w"][0] == pytest.approx(2 - 0.1 * 0.5 * 2)


def test_a_step_changes_neither_weights_nor_gradients_that_it_was_given(rng):
    weights, gradients = {"a": rng.normal(size=3)}, {"a": rng.normal(size=3)}
    kept = weights["a"].copy(), gradients["a"].copy()
    moved, moments = adam_step(weights, gradients, None, 0.1)
    adam_step(moved, gradients, moments, 0.1)
    np.testing.assert_array_equal((weights["a"], gradients["a"]), kept)
    assert moments.step == 1


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_the_adamw_of_pytorch(decay, rng):
    torch = pytest.importorskip("torch")
    weights, moments = {"a": rng.normal(size=(3, 5)), "b": rng.normal(size=7)}, None
    tensors = {n: torch.tensor(w, requires_grad=True) for n, w in weights.items()}
    other = torch.optim.AdamW(tensors.values(), lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for _ in range(11):
        gradients = {n: rng.normal(size=w.shape) for n, w in weights.items()}
        weights, moments = adam_step(weights, gradients, moments, 0.02, decay=decay)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        other.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(weights[name], tensor.detach().numpy(), rtol=1e-10)


def test_clipping_shortens_all_arrays_together_and_lengthens_nothing():
    clipped, norm = clip_gradients({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}, limit=2.5)
    assert norm == 5
    np.testing.assert_allclose(clipped["a"], [1.5, 0])
    np.testing.assert_allclose(clipped["b"], [[2]])
    short, _ = clip_gradients({"a": np.array([0.3])})
    assert short["a"][0] == 0.3
    none, norm = clip_gradients({"a": np.zeros(2)})
    assert norm == 0
    assert not none["a"].any()
