"""The three FP8 products, the directions of their tiles, and FP8 training against FP32 training."""

import mantissa_exponent as me
import mixed_precision as mp
import numpy as np
import pytest
from fine_grained_quantization import (
    dequantize,
    product_bound,
    quantize,
    quantize_activation,
    quantize_weight,
    relative_rms,
)
from float_formats import BF16, round_to


def operands(rng, n=131, d=257, f=129):
    x = rng.standard_normal((n, d)).astype(np.float32)
    weight = rng.standard_normal((f, d)).astype(np.float32) / 16
    return x, weight, 1e-5 * rng.standard_normal((n, f)).astype(np.float32)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_all_three_products_lie_within_their_bounds(power_of_two, rng):  # V3 Fig. 6
    x, weight, dy = operands(rng)
    recipe = mp.Recipe(power_of_two=power_of_two)
    y, cache = mp.fp8_forward(x, weight, recipe)
    dx, dweight = mp.fp8_backward(dy, cache, recipe)
    x_q, weight_q = cache
    exact = x.astype(np.float64) @ weight.T
    bf16 = 2.0**-8  # y and dx leave the layer in BF16: half a step of its 8 bits
    assert (np.abs(y - exact) <= product_bound(x, weight, x_q, weight_q) + np.abs(y) * bf16).all()
    dy_q = quantize(dy, (1, 128), power_of_two=power_of_two, floor=mp.GRADIENT_FLOOR)
    bound = product_bound(dy, weight.T, dy_q, mp.transpose(weight_q))
    assert (np.abs(dx - dy.astype(np.float64) @ weight) <= bound + np.abs(dx) * bf16).all()
    assert relative_rms(dy.T @ x, dweight) < 0.06


def test_the_products_are_those_of_the_dequantized_operands(rng):
    x, weight, dy = operands(rng)
    y, (x_q, weight_q) = mp.fp8_forward(x, weight)
    dx, dweight = mp.fp8_backward(dy, (x_q, weight_q))
    x_hat, weight_hat = dequantize(x_q), dequantize(weight_q)
    dy_rows = dequantize(quantize(dy, (1, 128), floor=mp.GRADIENT_FLOOR))
    dy_columns = dequantize(quantize(dy, (128, 1), floor=mp.GRADIENT_FLOOR))
    x_columns = dequantize(quantize(x_hat, (128, 1)))
    for got, want in ((y, x_hat @ weight_hat.T), (dx, dy_rows @ weight_hat)):
        np.testing.assert_array_equal(round_to(got, BF16), got)
        np.testing.assert_allclose(got, want, rtol=2.0**-8, atol=2e-6 * np.abs(want).max())
    want = dy_columns.T @ x_columns
    np.testing.assert_allclose(dweight, want, rtol=0, atol=2e-6 * np.abs(want).max())
    assert (round_to(dweight, BF16) != dweight).mean() > 0.9


def test_square_blocks_serve_both_directions_of_the_weight(rng):
    """Quantizing W^T gives the same codes as reading those of W the other way round."""
    weight = rng.standard_normal((257, 131))
    direct, read = quantize_weight(weight.T), mp.transpose(quantize_weight(weight))
    np.testing.assert_array_equal(direct.codes, read.codes)
    np.testing.assert_array_equal(direct.scales, read.scales)


def test_what_is_kept_for_the_backward_pass_is_codes(rng):
    x, weight, _ = operands(rng)
    _, (x_q, weight_q) = mp.fp8_forward(x, weight)
    assert x_q.codes.dtype == weight_q.codes.dtype == np.uint8
    assert x_q.codes.nbytes * 4 == x.nbytes
    assert (x_q.tile, weight_q.tile) == ((1, 128), (128, 128))


def test_a_gradient_of_1e_minus_9_is_not_lost_below_the_floor(rng):
    """The inference kernels take max |x| up to 1e-4; in training that would leave small gradients a bit or two."""
    x, weight, dy = operands(rng)
    _, cache = mp.fp8_forward(x, weight)
    dx, dweight = mp.fp8_backward(1e-4 * dy, cache)
    want = 1e-4 * dy
    assert relative_rms(want @ weight, dx) < 0.06
    assert relative_rms(want.T @ x, dweight) < 0.06
    assert relative_rms(want, dequantize(quantize_activation(want))) > 0.10


def test_a_gradient_whose_tokens_differ_in_size_needs_tiles_not_blocks(rng):
    x, weight, dy = operands(rng, n=128)
    dy *= np.exp(4 * rng.standard_normal((128, 1))).astype(np.float32)
    _, cache = mp.fp8_forward(x, weight)
    small = np.argsort(np.abs(dy).max(axis=1))[:32]
    want = dy @ weight
    by_tile = relative_rms(want[small], mp.fp8_backward(dy, cache)[0][small])
    by_block = relative_rms(want[small], mp.fp8_backward(dy, cache, mp.BLOCK_GRADIENTS)[0][small])
    assert by_tile < 0.06
    assert by_block > 2 * by_tile


def test_the_gradients_of_the_whole_network_stay_close_to_the_exact_ones():
    weights, _ = me.train_exactly()
    context, target = me.draw_batch(np.random.default_rng(4), 256)
    gradients = []
    for linear in (me.EXACT, mp.fp8_linear()):
        logits, cache = me.network_forward(weights, context, linear)
        gradients.append(me.network_backward(me.cross_entropy(logits, target)[1], weights, cache, linear))
    for name in ("gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"):
        assert relative_rms(getattr(gradients[0], name), getattr(gradients[1], name)) < 0.12


def test_micro_batches_add_up_to_the_whole_batch_in_float32():
    weights = me.NetworkWeights.init(np.random.default_rng(0))
    context, target = me.draw_batch(np.random.default_rng(1), 64)

    def gradient(part):
        logits, cache = me.network_forward(weights, context[part])
        return me.network_backward(me.cross_entropy(logits, target[part])[1], weights, cache)

    total = mp.accumulate(mp.accumulate(None, gradient(slice(0, 32)), 0.5), gradient(slice(32, 64)), 0.5)
    whole = gradient(slice(0, 64))
    for name, value in vars(whole).items():
        assert getattr(total, name).dtype == np.float32
        np.testing.assert_allclose(getattr(total, name), value, atol=1e-5 * np.abs(value).max())


def test_moments_are_stored_in_bf16_and_master_weights_are_not():
    weights, gradients = (
        me.NetworkWeights.init(np.random.default_rng(0)),
        me.NetworkWeights.init(np.random.default_rng(1)),
    )
    updated, moments = me.adam_step(weights, gradients, {}, 1, 1e-5, mp.keep_in_bf16)
    for first, second in moments.values():
        np.testing.assert_array_equal(round_to(first, BF16), first)
        np.testing.assert_array_equal(round_to(second, BF16), second)
    assert (round_to(updated.gate_proj, BF16) != updated.gate_proj).mean() > 0.9
    moved = updated.gate_proj != weights.gate_proj
    assert moved.mean() > 0.9
    lost = round_to(updated.gate_proj, BF16) == round_to(weights.gate_proj, BF16)
    assert lost.mean() > 0.9  # what a BF16 master would have missed


def test_fp8_training_follows_fp32_training_from_the_same_start():
    exact, low = mp.compare_training(25, seeds=(0,))[0]
    assert exact < 3.5
    assert abs(low / exact - 1) < 0.01


def test_the_same_seed_gives_the_same_training():
    np.testing.assert_array_equal(mp.train(mp.fp8_linear(), steps=3)[1], mp.train(mp.fp8_linear(), steps=3)[1])


@pytest.mark.slow
def test_over_three_seeds_fp8_training_ends_within_half_a_percent_of_fp32():
    """`python mixed_precision.py --seeds`: -0.03 to +0.18 % when this was written; the report asks for 0.25 %."""
    gaps = [low / exact - 1 for exact, low in mp.compare_training(400).values()]
    assert abs(np.mean(gaps)) < 0.0025
    assert max(np.abs(gaps)) < 0.005


def test_the_flow_table_says_where_each_tensor_lives_and_why():
    assert all(len(row) == 4 and all(row) for row in mp.FLOW)
    assert {row[1] for row in mp.FLOW} == {"E4M3", "BF16", "FP32", "BF16 / FP32", "E5M6"}


def test_a_swiglu_network_keeps_codes_alone_and_has_the_gradients_of_the_exact_one(rng):
    """What FP8 costs of each gradient is a few percent; a wrong sign, order or transpose costs all of it."""
    n, d, f = 131, 257, 193
    x, dy = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((n, d)).astype(np.float32)
    gate, up = (rng.standard_normal((f, d)).astype(np.float32) / 16 for _ in range(2))
    down = rng.standard_normal((d, f)).astype(np.float32) / 14
    y, cache = mp.fp8_swiglu_forward(x, gate, up, down)
    assert all(part.codes.dtype == np.uint8 for part in cache)
    got = (y, *mp.fp8_swiglu_backward(dy, cache))
    g, u = x.astype(np.float64) @ gate.T, x.astype(np.float64) @ up.T
    s = 1 / (1 + np.exp(-g))
    dh = dy.astype(np.float64) @ down
    dg, du = dh * u * s * (1 + g * (1 - s)), dh * g * s
    want = ((g * s * u) @ down.T, dg @ gate + du @ up, dg.T @ x, du.T @ x, dy.T @ (g * s * u))
    for ours, exact in zip(got, want):
        assert ours.shape == exact.shape
        assert relative_rms(exact, ours) < 0.09
