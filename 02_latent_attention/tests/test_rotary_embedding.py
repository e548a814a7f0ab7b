"""A rotation keeps lengths, sees distances only, and comes in two layouts that must not be mixed."""

import numpy as np
import pytest
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    permute_rotary_rows,
    rope_angles,
    rotate_halves_backward,
    rotate_halves_forward,
    rotate_pairs_backward,
    rotate_pairs_forward,
)

PAIRS, HALVES = (rotate_pairs_forward, rotate_pairs_backward), (rotate_halves_forward, rotate_halves_backward)
B, H, S, R = 2, 3, 5, 14


@pytest.mark.parametrize(("forward", "backward"), [PAIRS, HALVES])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 1, 2), (7, 2)])
def test_gradients_agree_with_central_differences(forward, backward, shape, rng, check_gradients):
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    angles = rope_angles(np.arange(shape[-2]) + 3, inverse_frequencies(shape[-1]))
    check_gradients(
        lambda: float((forward(x, angles)[0] * dy).sum()), {"x": x}, {"x": backward(dy, forward(x, angles)[1])}
    )


def test_the_pairs_are_multiplied_as_complex_numbers(rng):
    x, angles = rng.standard_normal((B, H, S, R)), rope_angles(np.arange(S), inverse_frequencies(R))
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    y, _ = rotate_pairs_forward(x, angles)
    np.testing.assert_allclose(y[..., 0::2] + 1j * y[..., 1::2], z, rtol=0, atol=1e-14)


@pytest.mark.parametrize("forward", [rotate_pairs_forward, rotate_halves_forward])
def test_lengths_stay_and_position_zero_changes_nothing(forward, rng):
    x = rng.standard_normal((B, H, S, R))
    y, _ = forward(x, rope_angles(np.arange(S), inverse_frequencies(R)))
    np.testing.assert_allclose((y**2).sum(-1), (x**2).sum(-1), rtol=1e-13)
    assert np.array_equal(y[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("forward", [rotate_pairs_forward, rotate_halves_forward])
def test_the_score_sees_only_the_distance(forward, rng):
    q, k, f = rng.standard_normal((1, R)), rng.standard_normal((1, R)), inverse_frequencies(R)

    def score(m, n):
        return (forward(q, rope_angles([m], f))[0] * forward(k, rope_angles([n], f))[0]).sum()

    assert np.isclose(score(7, 3), score(1007, 1003), rtol=0, atol=1e-11)
    assert not np.isclose(score(7, 3), score(7, 4))
    assert not np.isclose(score(7, 3), score(3, 7))


def test_after_the_permutation_the_half_split_rule_gives_the_same_scores(rng):
    q, k = rng.standard_normal((2, B, H, S, R))
    angles, order = rope_angles(np.arange(S), inverse_frequencies(R)), half_split_order(R)

    def scores(forward, pick):
        return forward(q[..., pick], angles)[0] @ forward(k[..., pick], angles)[0].swapaxes(-1, -2)

    want = scores(rotate_pairs_forward, slice(None))
    np.testing.assert_allclose(scores(rotate_halves_forward, order), want, rtol=0, atol=1e-13)
    assert np.abs(scores(rotate_halves_forward, slice(None)) - want).max() > 0.1  # the control: forgetting it is wrong


def test_permuting_the_rows_once_is_permuting_the_activations_every_time(rng):
    weight, x = rng.standard_normal((3 * 11, 5)), rng.standard_normal((7, 5))
    raw = (x @ weight.T).reshape(7, 3, 11)
    permuted = (x @ permute_rotary_rows(weight, n_heads=3, width=11, R=4).T).reshape(7, 3, 11)
    assert np.array_equal(permuted[..., :7], raw[..., :7])
    assert np.array_equal(permuted[..., 7:], raw[..., 7:][..., half_split_order(4)])


def test_the_frequencies_fall_from_one_to_nearly_one_over_theta():
    f = inverse_frequencies(64)
    assert f[0] == 1.0
    np.testing.assert_allclose(f[[16, 22, 31]], [1e-2, 1.77827941e-3, 1.33352143e-4], rtol=1e-8)


def test_positions_may_differ_between_sequences(rng):
    x, f = rng.standard_normal((2, S, R)), inverse_frequencies(R)
    y, _ = rotate_pairs_forward(x, rope_angles(np.array([np.arange(S), np.arange(S) + 9]), f))
    for b, start in enumerate((0, 9)):
        assert np.array_equal(y[b], rotate_pairs_forward(x[b], rope_angles(np.arange(S) + start, f))[0])


def test_float32_stays_float32(rng):
    x = rng.standard_normal((B, S, R)).astype("f4")
    angles = rope_angles(np.arange(S), inverse_frequencies(R))
    assert rotate_pairs_forward(x, angles)[0].dtype == rotate_halves_forward(x, angles)[0].dtype == np.float32


def test_an_odd_width_and_angles_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match="rotary width 7 cannot be cut into pairs; use 8"):
        inverse_frequencies(7)
    angles = rope_angles(np.arange(5), inverse_frequencies(6))
    for shape in [(5, 8), (4, 6)]:
        with pytest.raises(ValueError, match="3 angles at 5 positions"):
            rotate_pairs_forward(np.zeros(shape), angles)
    with pytest.raises(ValueError, match="33 rows are not 2 heads of 11"):
        permute_rotary_rows(np.zeros((33, 5)), 2, 11, 4)
