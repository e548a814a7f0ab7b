"""What a spike does to each kind of scale, and that powers of two turn without a loss."""

import numpy as np
import online_quantization as oq
import pytest
from fine_grained_quantization import dequantize, quantize, quantize_activation
from float_formats import E4M3, E5M6, decode


def walk(history=16, **settings):
    delayed, reports = oq.DelayedScale(history), []
    for x, ordinary in oq.stream_with_spike(**settings):
        past, now = oq.report_on(x, delayed.quantize(x), ordinary), oq.report_on(x, oq.quantize_online(x), ordinary)
        reports.append((past, now))
    return reports


def test_a_delayed_scale_clips_the_spike_and_is_blind_for_the_length_of_its_history():
    reports = walk(history=7, spike_at=12)
    blind = [step for step, (past, _) in enumerate(reports) if past.error > 0.5]
    assert blind == list(range(13, 20))
    assert reports[12][0].clipped > 0
    assert not any(past.clipped for past, _ in reports[13:20])


def test_an_online_scale_clips_nothing_and_recovers_at_once():
    reports = walk()
    assert not any(now.clipped for _, now in reports)
    assert all(now.error < 0.03 for step, (_, now) in enumerate(reports) if step != 12)
    assert reports[12][1].flushed <= 128 / (32 * 256)


def test_a_delayed_scale_knows_only_the_past():
    delayed = oq.DelayedScale(history=2)
    seen = [float(delayed.quantize(np.full((1, 1), v)).scales[0, 0]) * 448 for v in (1.0, 4.0, 2.0, 3.0, 0.5)]
    np.testing.assert_allclose(seen, [1.0, 1.0, 4.0, 4.0, 3.0], rtol=1e-6)


def test_an_overflow_of_a_delayed_scale_is_the_largest_value_not_nan():
    delayed = oq.DelayedScale()
    delayed.quantize(np.ones((1, 1)))
    q = delayed.quantize(np.array([[1000.0, -1e30]]))
    np.testing.assert_array_equal(decode(q.codes, E4M3), [[448, -448]])


@pytest.mark.parametrize("shape", [(131, 257), (1, 1), (256, 128)])
@pytest.mark.parametrize("fmt", [E4M3, E5M6], ids=lambda f: f.name)
def test_turning_gives_tiles_of_one_column_and_their_own_scales(fmt, shape, rng):
    x = rng.standard_normal(shape)
    q = quantize(x, (1, 128), fmt)
    turned = oq.turn_tiles(q, power_of_two=False)
    assert turned.tile == (128, 1)
    assert turned.scales.shape == (-(-shape[0] // 128), shape[1])
    assert turned.fmt == fmt


def test_with_powers_of_two_e5m6_turns_without_changing_a_value():
    x = oq.spread_activations(spread=1.5)
    q = quantize(x, (1, 128), E5M6, power_of_two=True)
    np.testing.assert_array_equal(dequantize(oq.turn_tiles(q, power_of_two=True)), dequantize(q))


def test_with_powers_of_two_a_value_changes_only_when_it_becomes_subnormal():
    x = oq.spread_activations(spread=1.5)
    q = quantize_activation(x, power_of_two=True)
    turned = oq.turn_tiles(q, power_of_two=True)
    before, after = dequantize(q), dequantize(turned)
    scale = turned.scales.repeat(128, axis=0)
    changed = before != after
    assert changed.any()
    assert (np.abs(before[changed]) < scale[changed] * E4M3.smallest_normal).all()


@pytest.mark.parametrize("fmt", [E4M3, E5M6], ids=lambda f: f.name)
def test_with_float32_scales_nearly_every_value_is_rounded_twice(fmt):
    x = oq.spread_activations()
    changed, before, after = oq.turning_error(x, fmt, power_of_two=False)
    assert changed > 0.9
    assert 1.2 < after / before < 1.5  # two independent roundings: about sqrt(2)
    changed, before, after = oq.turning_error(x, fmt, power_of_two=True)
    assert changed < 0.001
    assert after < 1.01 * before


def test_turning_back_and_forth_with_powers_of_two_is_stable():
    q = quantize(oq.spread_activations(128, 128), (1, 128), E5M6, power_of_two=True)
    once = dequantize(oq.turn_tiles(q, power_of_two=True))
    np.testing.assert_array_equal(dequantize(quantize(once, (1, 128), E5M6, power_of_two=True)), dequantize(q))


def test_e5m6_costs_an_eighth_of_the_error_of_e4m3():
    x = oq.spread_activations()
    _, low, _ = oq.turning_error(x, E4M3, power_of_two=True)
    _, high, _ = oq.turning_error(x, E5M6, power_of_two=True)
    assert 7 < low / high < 9


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        oq.DelayedScale(history=0)
    with pytest.raises(ValueError, match="tiles of one row"):
        oq.turn_tiles(quantize(np.ones((2, 2)), (2, 2)), power_of_two=True)
