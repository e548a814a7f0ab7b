"""RMSNorm: what it forgets (length), what it keeps (direction), and its gradient."""

import numpy as np
import pytest
from rms_norm import rms_norm_backward, rms_norm_forward


def test_every_row_leaves_with_root_mean_square_one(rng):
    x = 30 * rng.normal(size=(3, 5, 7))
    y, _ = rms_norm_forward(x, np.ones(7))
    np.testing.assert_allclose(np.sqrt(np.mean(y**2, axis=-1)), 1.0, rtol=1e-6)  # eps / rms^2 is below 1e-6 here


def test_the_length_of_a_row_is_forgotten_and_its_sign_is_kept(rng):
    x, weight = rng.normal(size=(3, 5)), rng.normal(size=5)
    y, _ = rms_norm_forward(x, weight, eps=0.0)
    np.testing.assert_allclose(rms_norm_forward(1000 * x, weight, eps=0.0)[0], y, rtol=1e-12)
    np.testing.assert_allclose(rms_norm_forward(-x, weight, eps=0.0)[0], -y, rtol=1e-12)


def test_the_mean_is_not_subtracted():
    """A constant row comes out as ones; LayerNorm would send it to zero."""
    y, _ = rms_norm_forward(np.full((1, 7), 4.0), np.ones(7), eps=0.0)
    np.testing.assert_allclose(y, 1.0, rtol=1e-14)


def test_eps_stands_inside_the_root():
    """x = 0.001 has mean square 1e-6, equal to eps: y = 1 / sqrt(2). Outside the root it would be nearly 1."""
    y, _ = rms_norm_forward(np.full(3, 1e-3), np.ones(3))
    np.testing.assert_allclose(y, 2**-0.5, rtol=1e-12)


def test_the_released_eps_is_the_default():
    x = np.full(3, 1e-3)
    assert np.array_equal(rms_norm_forward(x, np.ones(3))[0], rms_norm_forward(x, np.ones(3), eps=1e-6)[0])


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    y, cache = rms_norm_forward(np.zeros((1, 5)), np.ones(5))
    dx, dweight = rms_norm_backward(np.ones((1, 5)), cache)
    assert np.array_equal(y, np.zeros((1, 5)))
    np.testing.assert_allclose(dx, 1000.0, rtol=1e-12)  # 1 / sqrt(eps)
    assert np.array_equal(dweight, np.zeros(5))


def test_no_gradient_points_along_the_input(rng):
    x, weight, dy = (rng.normal(size=(3, 5)) for _ in range(3))
    dx, _ = rms_norm_backward(dy, rms_norm_forward(x, weight[0], eps=0.0)[1])
    np.testing.assert_allclose((dx * x).sum(axis=-1), 0, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 5), (5,), (1, 1, 1), (1, 7)])
def test_the_gradient_agrees_with_central_differences(shape, rng, check_gradients):
    x, weight, dy = rng.normal(size=shape), rng.normal(size=shape[-1]), rng.normal(size=shape)
    dx, dweight = rms_norm_backward(dy, rms_norm_forward(x, weight, eps=0.1)[1])
    check_gradients(
        lambda: np.sum(dy * rms_norm_forward(x, weight, eps=0.1)[0]),
        {"x": x, "weight": weight},
        {"x": dx, "weight": dweight},
    )


def test_it_equals_the_norm_of_pytorch_forward_and_backward(rng):
    torch = pytest.importorskip("torch")
    x, weight, dy = rng.normal(size=(2, 3, 5)), rng.normal(size=5), rng.normal(size=(2, 3, 5))
    y, cache = rms_norm_forward(x, weight)
    dx, dweight = rms_norm_backward(dy, cache)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    ty = torch.nn.functional.rms_norm(tx, (5,), tw, eps=1e-6)
    ty.backward(torch.tensor(dy))
    for got, want in ((y, ty.detach()), (dx, tx.grad), (dweight, tw.grad)):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-10, atol=1e-12)


def test_a_weight_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"width \(5,\).*shape \(1,\)"):  # would broadcast in silence
        rms_norm_forward(np.ones((3, 5)), np.ones(1))
