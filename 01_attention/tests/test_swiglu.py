"""SwiGLU: the gate, token by token, and the gradients of its three matrices."""

from dataclasses import fields, replace

import numpy as np
import pytest
from swiglu import SwigluWeights, sigmoid, swiglu_backward, swiglu_forward


def as_dict(weights):
    return {f.name: getattr(weights, f.name) for f in fields(weights)}


def test_the_sigmoid_neither_overflows_nor_loses_its_tail():
    assert np.array_equal(sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(sigmoid(np.array([-50.0])), np.exp(-50.0), rtol=1e-12)


def test_a_gate_of_ln_3_is_open_by_three_quarters():
    weights = SwigluWeights(gate_proj=np.array([[np.log(3.0)]]), up_proj=np.array([[8.0]]), down_proj=np.array([[1.0]]))
    y, _ = swiglu_forward(np.array([[1.0]]), weights)
    np.testing.assert_allclose(y, 6 * np.log(3.0), rtol=1e-14)


def test_a_closed_gate_lets_nothing_through(rng):
    weights = SwigluWeights.init(rng, 5, 7)
    y, _ = swiglu_forward(rng.normal(size=(3, 5)), replace(weights, gate_proj=np.zeros((7, 5))))
    assert np.array_equal(y, np.zeros((3, 5)))


def test_the_up_branch_is_linear_and_the_gate_is_not(rng):
    weights, x = SwigluWeights.init(rng, 5, 7), rng.normal(size=(3, 5))
    y, _ = swiglu_forward(x, weights)
    doubled_up, _ = swiglu_forward(x, replace(weights, up_proj=2 * weights.up_proj))
    doubled_gate, _ = swiglu_forward(x, replace(weights, gate_proj=2 * weights.gate_proj))
    np.testing.assert_allclose(doubled_up, 2 * y, rtol=1e-12)
    assert np.abs(doubled_gate - 2 * y).max() > 0.1


def test_tokens_do_not_see_each_other(rng):
    weights, x = SwigluWeights.init(rng, 5, 7), rng.normal(size=(2, 3, 5))
    y, _ = swiglu_forward(x, weights)
    alone, _ = swiglu_forward(x[1, 2], weights)
    np.testing.assert_allclose(y[1, 2], alone, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 5), (5,), (1, 1)])
@pytest.mark.parametrize("hidden_width", [11, 1])
def test_the_gradient_agrees_with_central_differences(shape, hidden_width, rng, check_gradients):
    weights = SwigluWeights.init(rng, shape[-1], hidden_width)
    x, dy = rng.normal(size=shape), rng.normal(size=shape)
    dx, dweights = swiglu_backward(dy, swiglu_forward(x, weights)[1])
    check_gradients(
        lambda: np.sum(dy * swiglu_forward(x, weights)[0]),
        {"x": x, **as_dict(weights)},
        {"x": dx, **as_dict(dweights)},
    )


def test_it_equals_pytorch_forward_and_backward(rng):
    torch = pytest.importorskip("torch")
    weights, x, dy = SwigluWeights.init(rng, 5, 7), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    y, cache = swiglu_forward(x, weights)
    dx, dweights = swiglu_backward(dy, cache)
    t = {k: torch.tensor(v, requires_grad=True) for k, v in {"x": x, **as_dict(weights)}.items()}
    ty = (torch.nn.functional.silu(t["x"] @ t["gate_proj"].T) * (t["x"] @ t["up_proj"].T)) @ t["down_proj"].T
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-10, atol=1e-12)
    for name, got in {"x": dx, **as_dict(dweights)}.items():
        np.testing.assert_allclose(got, t[name].grad.numpy(), rtol=1e-10, atol=1e-12)


def test_matrices_that_do_not_fit_are_refused(rng):
    weights = SwigluWeights.init(rng, 5, 7)
    with pytest.raises(ValueError, match=r"x has width 7, up_proj reads 5"):
        swiglu_forward(np.ones((3, 7)), weights)
    with pytest.raises(ValueError, match=r"down_proj.*\(7, 5\).*down_proj is \[D, F\]"):
        swiglu_forward(np.ones((3, 5)), replace(weights, down_proj=weights.down_proj.T))
