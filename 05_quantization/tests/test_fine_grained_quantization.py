"""Golden tiles, ragged edges, outliers, empty tiles, and a product held to its derived bound."""

import fine_grained_quantization as fg
import numpy as np
import pytest
from float_formats import E4M3, E5M6, decode

TILES = [(1, 128), (128, 128), (128, 1)]


def golden_tile():
    tile = np.zeros((1, 128), np.float32)
    tile[0, :4] = [0.001, 0.0025, -0.004, 0.3]
    return tile


def test_the_golden_tile():
    q = fg.quantize_activation(golden_tile())
    np.testing.assert_allclose(q.scales, [[6.696429e-4]], rtol=1e-6)
    np.testing.assert_array_equal(decode(q.codes[0, :4], E4M3), [1.5, 3.75, -6, 448])
    np.testing.assert_allclose(fg.dequantize(q)[0, :4], [0.00100446, 0.00251116, -0.00401786, 0.3], rtol=1e-5)
    assert not q.codes[0, 4:].any()


def test_the_golden_tile_under_a_power_of_two():
    """The scale goes up to 2^-10 first, then the numbers are divided; the other order gives other codes."""
    q = fg.quantize_activation(golden_tile(), power_of_two=True)
    assert q.scales[0, 0] == 2.0**-10
    np.testing.assert_array_equal(decode(q.codes[0, :4], E4M3), [1, 2.5, -4, 320])
    np.testing.assert_array_equal(fg.dequantize(q)[0, :4], [2.0**-10, 2.5 * 2.0**-10, -4 * 2.0**-10, 0.3125])


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("columns", [1, 127, 128, 129, 576])
@pytest.mark.parametrize("tile", TILES)
def test_ragged_edges_are_short_tiles_with_their_own_scale(tile, columns, power_of_two, rng):
    x = rng.standard_normal((131, columns)).astype(np.float32)
    x[-1], x[:, -1] = 7.0, 7.0  # the edge is larger, and must not leak inwards
    q = fg.quantize(x, tile, power_of_two=power_of_two)
    assert q.codes.shape == x.shape
    assert q.scales.shape == (-(-131 // tile[0]), -(-columns // tile[1]))
    assert (np.abs(fg.dequantize(q) - x) <= fg.rounding_bound(x, q)).all()
    for i in range(q.scales.shape[0]):
        for j in range(q.scales.shape[1]):
            part = x[i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
            want = np.float32(np.abs(part).max()) / np.float32(448)
            assert q.scales[i, j] == want or (power_of_two and want <= q.scales[i, j] < 2 * want)


def test_the_scale_shape_of_the_released_576_wide_matrix():
    assert fg.quantize_weight(np.ones((576, 7168), np.float32)).scales.shape == (5, 56)


def test_an_all_zero_tile_stays_zero_and_makes_no_nan(rng):
    x = rng.standard_normal((5, 384))
    x[2], x[:, 128:256] = 0, 0
    for tile in TILES:
        back = fg.dequantize(fg.quantize(x, tile))
        assert np.isfinite(back).all()
        assert not back[x == 0].any()
    zero = fg.quantize_tensor(np.zeros((3, 7)))
    assert not fg.multiply_quantized(zero, zero).any()


def test_an_outlier_costs_its_own_tile_only(rng):
    x = rng.standard_normal((7, 384)).astype(np.float32)
    calm = fg.dequantize(fg.quantize_activation(x))
    x[3, 130] = 1e6
    struck = fg.dequantize(fg.quantize_activation(x))
    untouched = np.ones(x.shape, bool)
    untouched[3, 128:256] = False
    np.testing.assert_array_equal(struck[untouched], calm[untouched])
    assert fg.relative_rms(x[3:4, 131:256], struck[3:4, 131:256]) > 0.5
    assert fg.relative_rms(x[:3], fg.dequantize(fg.quantize_tensor(x))[:3]) > 0.5


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("tile", TILES)
def test_quantizing_again_with_the_same_scale_changes_no_code(tile, power_of_two, rng):
    x = (rng.standard_normal((131, 257)) * np.exp(2 * rng.standard_normal((131, 1)))).astype(np.float32)
    first = fg.quantize(x, tile, power_of_two=power_of_two)
    scaled = fg.dequantize(first) / fg.spread(first.scales, tile, x.shape)
    np.testing.assert_array_equal(fg.encode(scaled, E4M3), first.codes)
    if not power_of_two:  # the largest of a tile is 448 exactly, so the second scale is the first
        second = fg.quantize(fg.dequantize(first), tile)
        np.testing.assert_allclose(second.scales, first.scales, rtol=2e-7)
        np.testing.assert_array_equal(second.codes, first.codes)


def test_scaling_by_a_power_of_two_scales_the_result_and_nothing_else(rng):
    x = rng.standard_normal((3, 256)).astype(np.float32)
    plain, scaled = fg.quantize_activation(x), fg.quantize_activation(32 * x)
    np.testing.assert_array_equal(scaled.codes, plain.codes)
    np.testing.assert_array_equal(scaled.scales, 32 * plain.scales)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(67, 576, 131), (1, 1, 1), (5, 127, 129), (3, 129, 1)])
def test_the_product_lies_within_its_derived_bound(shape, power_of_two, rng):
    tokens, columns, rows = shape
    x = rng.standard_normal((tokens, columns)) * np.exp(2 * rng.standard_normal(columns))
    weight = 0.02 * rng.standard_normal((rows, columns))
    x_q = fg.quantize_activation(x, power_of_two=power_of_two)
    weight_q = fg.quantize_weight(weight, power_of_two=power_of_two)
    error = np.abs(fg.multiply_quantized(x_q, weight_q) - x @ weight.T)
    bound = fg.product_bound(x, weight, x_q, weight_q)
    assert (error <= bound).all()
    assert bound.mean() < 0.2 * (np.abs(x) @ np.abs(weight).T).mean()  # and the bound is not an empty one


def test_the_product_is_that_of_the_dequantized_matrices(rng):  # V3 Fig. 7
    """Scales out of the inner sum or multiplied in first: the same number, up to FP32 sums."""
    x_q = fg.quantize_activation(rng.standard_normal((7, 300)))
    weight_q = fg.quantize_weight(rng.standard_normal((257, 300)))
    want = fg.dequantize(x_q).astype(np.float64) @ fg.dequantize(weight_q).astype(np.float64).T
    np.testing.assert_allclose(fg.multiply_quantized(x_q, weight_q), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_an_activation_has_one_scale_for_each_token_and_128_channels(rng):  # V3 Fig. 7
    assert fg.quantize_activation(rng.standard_normal((131, 300))).scales.shape == (131, 3)
    assert fg.quantize_weight(rng.standard_normal((131, 300))).scales.shape == (2, 3)
    assert fg.quantize_tensor(rng.standard_normal((131, 300))).scales.shape == (1, 1)


def test_a_token_is_quantized_the_same_alone_and_in_a_batch(rng):
    x = rng.standard_normal((11, 256)) * np.exp(3 * rng.standard_normal((11, 1)))
    together = fg.quantize_activation(x)
    alone = fg.quantize_activation(x[4:5])
    np.testing.assert_array_equal(alone.codes[0], together.codes[4])


def test_codes_of_more_than_eight_bits_work_too(rng):
    x = rng.standard_normal((3, 130))
    q = fg.quantize(x, (1, 128), E5M6)
    assert q.codes.dtype == np.uint16
    assert fg.relative_rms(x, fg.dequantize(q)) < 2.0**-7


def test_an_odd_scale_never_leaves_the_largest_element_out_of_range(rng):
    """max / (max / 448) may round to just above 448; the code must be 448, never NaN."""
    x = rng.uniform(0.1, 10, (20011, 1)).astype(np.float32)
    assert (np.abs(decode(fg.quantize(x, (1, 128)).codes, E4M3)) == 448).all()


def test_bad_input_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="matrix"):
        fg.quantize_activation(np.zeros(128))
    with pytest.raises(ValueError, match="infinity or NaN"):
        fg.quantize_activation(np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="side below 1"):
        fg.quantize(np.ones((2, 2)), (0, 1))
    with pytest.raises(ValueError, match="must agree"):
        fg.multiply_quantized(fg.quantize_activation(np.ones((2, 5))), fg.quantize_weight(np.ones((2, 6))))
