"""The golden numbers of the released model, and what must stay as it was."""

import math

import numpy as np
import pytest
from rotary_embedding import inverse_frequencies, rope_angles, rotate_pairs_backward, rotate_pairs_forward
from yarn import V3_SCALING, magnitude, pair_at_rotations, ramp_bounds, rotary_frequencies, softmax_scale, stretch_ramp

GOLDEN = {
    10: 5.62341325e-2,
    11: 3.90069266e-2,
    16: 5.5e-3,
    22: 1.77827941e-4,
    23: 3.33380358e-5,
    31: 3.33380358e-6,
}


def test_the_frequencies_of_the_released_model():
    f = rotary_frequencies(64, 10000.0, V3_SCALING)
    np.testing.assert_allclose(f[list(GOLDEN)], list(GOLDEN.values()), rtol=1e-8)
    assert np.array_equal(f[:11], inverse_frequencies(64)[:11])
    np.testing.assert_allclose(f[23:], inverse_frequencies(64)[23:] / 40, rtol=1e-14)


def test_the_ramp_is_cut_at_turns_over_the_training_context():
    assert ramp_bounds(64, 10000.0, V3_SCALING) == (10, 23)
    for turns in (32, 1):
        pair = pair_at_rotations(turns, 64, 10000.0, 4096)
        assert np.isclose(4096 * 10000.0 ** (-2 * pair / 64) / (2 * math.pi), turns)


def test_the_scale_of_the_released_models():
    assert np.isclose(softmax_scale(192, V3_SCALING), 0.1352338, rtol=0, atol=5e-8)
    assert np.isclose(softmax_scale(192), 0.0721688, rtol=0, atol=5e-8)
    v2 = {**V3_SCALING, "mscale": 0.707, "mscale_all_dim": 0.707}
    assert np.isclose(softmax_scale(192, v2), 0.1147214, rtol=0, atol=5e-8)
    assert np.isclose(magnitude(40), 1.368888, rtol=0, atol=5e-7)


def test_factor_one_is_plain_rope():
    same = {**V3_SCALING, "factor": 1}
    np.testing.assert_allclose(rotary_frequencies(64, 10000.0, same), inverse_frequencies(64), rtol=1e-15)
    assert softmax_scale(192, same) == softmax_scale(192)


def test_a_narrow_width_where_both_bounds_meet_still_has_a_ramp():
    tight = {**V3_SCALING, "beta_fast": 1, "beta_slow": 1, "original_max_position_embeddings": 7}
    low, high = ramp_bounds(2, 10000.0, tight)
    ramp = stretch_ramp(2, 10000.0, tight)
    assert 0 <= low <= high
    assert np.isfinite(ramp).all()
    assert ((ramp >= 0) & (ramp <= 1)).all()


def test_the_rotation_keeps_lengths_so_the_temperature_is_not_in_cos_and_sin(rng):
    x = rng.standard_normal((5, 64))
    y, _ = rotate_pairs_forward(x, rope_angles(np.arange(5) * 777, rotary_frequencies(64, 10000.0, V3_SCALING)))
    np.testing.assert_allclose((y**2).sum(-1), (x**2).sum(-1), rtol=1e-13)


def test_gradients_through_the_extended_rotation(rng, check_gradients):
    x, dy = rng.standard_normal((5, 6)), rng.standard_normal((5, 6))
    angles = rope_angles(np.arange(5) * 1000, rotary_frequencies(6, 10000.0, V3_SCALING))
    check_gradients(
        lambda: float((rotate_pairs_forward(x, angles)[0] * dy).sum()),
        {"x": x},
        {"x": rotate_pairs_backward(dy, angles)},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "linear"}, "type 'linear'"),
        ({"factor": 0.5}, "would shorten"),
        ({"mscale": 0.707}, "make them equal"),
    ],
)
def test_scalings_that_are_not_implemented_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rotary_frequencies(64, 10000.0, {**V3_SCALING, **change})


def test_a_scaling_without_its_keys_is_refused_by_name():
    with pytest.raises(ValueError, match=r"missing \['mscale', 'mscale_all_dim'\]"):
        softmax_scale(192, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096})
