"""FP8 training in the package against chapter 05, bit for bit: quantizers, products, layers, forward and backward."""

import fine_grained_quantization as fg
import mixed_precision as mp
import numpy as np
import pytest
import torch
from float_formats import E4M3, E5M2, E5M6
from online_quantization import turn_tiles

import deepseek_v3.ops as ops
from deepseek_v3.fp8 import recipe, tiles
from deepseek_v3.fp8.products import multiply_tiles

SHAPES = [(1, 1), (127, 129), (131, 576), (257, 127), (5, 640)]
CHAPTER = {"E4M3": E4M3, "E5M2": E5M2, "E5M6": E5M6}


def wild_matrix(rng, shape) -> np.ndarray:
    """Rows of very different size, a tile of zeros, an outlier of 10^6."""
    x = (rng.standard_normal(shape) * np.exp(4 * rng.standard_normal((shape[0], 1)))).astype(np.float32)
    if shape[0] > 4:
        x[3], x[4, shape[1] // 2] = 0, 1e6
    return x


def codes_of(q: tiles.Tiled) -> np.ndarray:
    return tiles.bytes_of(q.code).numpy()


def assert_same(ours: tiles.Tiled, chapter: fg.Quantized) -> None:
    np.testing.assert_array_equal(ours.scale.numpy(), chapter.scales)
    np.testing.assert_array_equal(codes_of(ours).astype(int), chapter.codes)
    assert ours.tile == chapter.tile


@pytest.mark.parametrize("fmt", [tiles.E4M3, tiles.E5M2, tiles.E5M6], ids=lambda f: f.name)
@pytest.mark.parametrize("tile", [tiles.ROWS, tiles.COLUMNS, tiles.SQUARES], ids=lambda t: f"{t[0]}x{t[1]}")
@pytest.mark.parametrize("ue8m0", [False, True])
def test_quantizers_are_the_chapters_bit_for_bit(tile, fmt, ue8m0, rng, form):
    for shape in SHAPES:
        x = wild_matrix(rng, shape)
        want = fg.quantize(x, tile, CHAPTER[fmt.name], power_of_two=ue8m0, floor=tiles.GRADIENT_FLOOR)
        q = tiles.quantize(torch.from_numpy(x), tile, fmt, ue8m0=ue8m0, floor=tiles.GRADIENT_FLOOR)
        assert_same(q, want)
        np.testing.assert_array_equal(tiles.dequantize(q).numpy(), fg.dequantize(want))
        in_bf16 = torch.from_numpy(x).bfloat16()
        want = fg.quantize(in_bf16.float().numpy(), tile, CHAPTER[fmt.name], power_of_two=ue8m0)
        assert_same(tiles.quantize(in_bf16, tile, fmt, ue8m0=ue8m0), want)


@pytest.mark.parametrize("fmt", [tiles.E4M3, tiles.E5M6], ids=lambda f: f.name)
@pytest.mark.parametrize("ue8m0", [False, True])
def test_turned_tiles_are_the_chapters_bit_for_bit(fmt, ue8m0, rng, form):
    for shape in SHAPES:
        x = wild_matrix(rng, shape)
        q = tiles.quantize(torch.from_numpy(x), tiles.ROWS, fmt, ue8m0=ue8m0)
        chapter = fg.quantize(x, (1, 128), CHAPTER[fmt.name], power_of_two=ue8m0)
        want = fg.quantize(fg.dequantize(chapter), (128, 1), power_of_two=ue8m0)
        assert_same(tiles.turn(q, ue8m0=ue8m0), want)
        if fmt is tiles.E4M3:
            assert_same(tiles.turn(q, ue8m0=ue8m0), turn_tiles(chapter, power_of_two=ue8m0))
        index = torch.from_numpy(rng.integers(0, shape[0], 139))
        want = fg.quantize(fg.dequantize(chapter)[index.numpy()], (128, 1), power_of_two=ue8m0)
        assert_same(tiles.turn(q, index, ue8m0=ue8m0), want)


@pytest.mark.parametrize("ue8m0", [False, True])
def test_both_directions_at_once_are_each_for_itself(ue8m0, rng, form):
    for shape in SHAPES:
        x = wild_matrix(rng, shape)
        row, column = tiles.quantize_both(torch.from_numpy(x), ue8m0=ue8m0, floor=tiles.GRADIENT_FLOOR)
        for ours, tile in ((row, (1, 128)), (column, (128, 1))):
            assert_same(ours, fg.quantize(x, tile, power_of_two=ue8m0, floor=tiles.GRADIENT_FLOOR))


def draw_layer(rng, n, d, f) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight = (rng.standard_normal((f, d)) / np.sqrt(d)).astype(np.float32)
    return wild_matrix(rng, (n, d)), weight, 1e-6 * wild_matrix(rng, (n, f))


LAYERS = [(131, 257, 129), (1, 127, 576), (300, 1, 7), (129, 576, 1), (257, 384, 128)]


def run_linear(x, weight, dy, how: recipe.Recipe) -> list[np.ndarray]:
    """y, dx, dweight of the package."""
    leaves = [torch.from_numpy(t).requires_grad_() for t in (x, weight)]
    y = ops.linear_in_fp8(*leaves, how)
    y.backward(torch.from_numpy(dy))
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("sizes", LAYERS)
def test_a_linear_layer_is_the_chapters_bit_for_bit(sizes, ue8m0, rng, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "0")
    x, weight, dy = draw_layer(rng, *sizes)
    chapter, how = mp.Recipe(power_of_two=ue8m0), recipe.Recipe(*[ue8m0] * 3)
    y, cache = mp.fp8_forward(x, weight, chapter)
    for ours, want in zip(run_linear(x, weight, dy, how), (y, *mp.fp8_backward(dy, cache, chapter))):
        np.testing.assert_array_equal(ours, want)


def test_the_variant_with_square_gradients_is_the_chapters_bit_for_bit(rng, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "0")
    x, weight, dy = draw_layer(rng, *LAYERS[0])
    y, cache = mp.fp8_forward(x, weight, mp.BLOCK_GRADIENTS)
    how = recipe.vary(recipe.PLAIN, "square-gradients")
    for ours, want in zip(run_linear(x, weight, dy, how), (y, *mp.fp8_backward(dy, cache, mp.BLOCK_GRADIENTS))):
        np.testing.assert_array_equal(ours, want)


def few_exponents(rng, shape, tile) -> tiles.Tiled:
    """Codes of +-1 to +-15 and scales of very different size: FP32 holds the sum of any tile exactly."""
    code = torch.from_numpy(rng.integers(-15, 16, shape)).float().to(tiles.E4M3.dtype)
    counts = [-(-n // t) for n, t in zip(shape, tile)]
    return tiles.Tiled(code, torch.from_numpy(np.exp(3 * rng.standard_normal(counts)).astype(np.float32)), tile)


def as_chapter(q: tiles.Tiled) -> fg.Quantized:
    return fg.Quantized(codes_of(q), q.scale.numpy(), q.tile, E4M3)


@pytest.mark.parametrize("sizes", [*LAYERS, (40, 600, 130)])
def test_products_in_all_three_directions_are_the_chapters_bit_for_bit(sizes, rng, form):
    """Of the kernel too: sums of tiles are exact here, and what follows them is rounded in the same places."""
    n, d, f = sizes
    rows, weight = few_exponents(rng, (n, d), tiles.ROWS), few_exponents(rng, (f, d), tiles.SQUARES)
    dy_row, dy_column = few_exponents(rng, (n, f), tiles.ROWS), few_exponents(rng, (n, f), tiles.COLUMNS)
    pairs = (rows, weight), (dy_row, weight.transposed())
    pairs += ((dy_column.transposed(), few_exponents(rng, (n, d), tiles.COLUMNS).transposed()),)
    for a, b in pairs:
        want = fg.multiply_quantized(as_chapter(a), as_chapter(b))
        np.testing.assert_array_equal(multiply_tiles(a, b).numpy(), want)
        in_bf16 = multiply_tiles(a, b, torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(in_bf16, mp.keep_in_bf16(want))


@pytest.mark.parametrize("sizes", LAYERS)
def test_any_product_of_the_kernel_is_the_chapters_to_the_last_bits_of_fp32(sizes, rng):
    n, d, f = sizes
    x, weight, _ = draw_layer(rng, n, d, f)
    a, b = tiles.quantize(torch.from_numpy(x)), tiles.quantize(torch.from_numpy(weight), tiles.SQUARES)
    want = fg.multiply_quantized(as_chapter(a), as_chapter(b))
    size = np.abs(fg.dequantize(as_chapter(a))) @ np.abs(fg.dequantize(as_chapter(b))).T
    assert (np.abs(multiply_tiles(a, b).numpy() - want) <= 128 * 2.0**-24 * size).all()


@pytest.mark.parametrize("sizes", [(131, 257, 129), (1, 127, 576), (129, 576, 1)])
def test_a_swiglu_network_is_the_chapters_bit_for_bit(sizes, rng, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "0")
    x, gate, dy = draw_layer(rng, *sizes)
    dy = 1e-6 * wild_matrix(rng, x.shape)
    up = (rng.standard_normal(gate.shape) / 16).astype(np.float32)
    down = (rng.standard_normal(gate.shape[::-1]) / 16).astype(np.float32)
    x = np.clip(x, -8, 8)  # so that silu(g) u stays within FP32
    leaves = [torch.from_numpy(t).requires_grad_() for t in (x, gate, up, down)]
    y = ops.swiglu_in_fp8(*leaves, recipe.PLAIN)
    y.backward(torch.from_numpy(dy))
    want, cache = mp.fp8_swiglu_forward(x, gate, up, down)
    np.testing.assert_array_equal(y.detach().numpy(), want)
    for leaf, exact in zip(leaves, mp.fp8_swiglu_backward(dy, cache)):
        np.testing.assert_array_equal(leaf.grad.numpy(), exact)


def experts_by_chapter(x, weight, index, gate, up, down, dout):
    """Output and gradients of routed experts, expert by expert in the chapter's functions."""
    options = {"power_of_two": True}
    x_q = fg.quantize_activation(x, **options)
    d_q = fg.quantize(dout, (1, 128), power_of_two=True, floor=tiles.GRADIENT_FLOOR)

    def picked(q, rows):
        return fg.Quantized(q.codes[rows], q.scales[rows], q.tile, q.fmt)

    def tall(q, rows, **more):
        return mp.transpose(fg.quantize(fg.dequantize(q)[rows], (128, 1), power_of_two=True, **more))

    n, a = index.shape
    y, dx, dweight = np.zeros((n, a, x.shape[1]), np.float32), np.zeros((n, a, x.shape[1]), np.float32), 0 * weight
    grads = [np.zeros_like(m) for m in (gate, up, down)]
    for e in range(len(gate)):
        rows, slot = np.nonzero(index == e)
        if not len(rows):
            continue
        codes = [fg.quantize_weight(m[e]) for m in (gate, up, down)]
        g, u = (mp.keep_in_bf16(fg.multiply_quantized(picked(x_q, rows), c)) for c in codes[:2])
        hidden = fg.quantize_activation(mp.gate_hidden(g, u)[0])
        y[rows, slot] = mp.keep_in_bf16(fg.multiply_quantized(hidden, codes[2]))
        dh = mp.keep_in_bf16(fg.multiply_quantized(picked(d_q, rows), mp.transpose(codes[2])))
        g, u = (fg.dequantize(fg.quantize_activation(t)) for t in (g, u))
        h, s = mp.gate_hidden(g, u)
        w = weight[rows, slot][:, None]
        dweight[rows, slot] = (dh * h).sum(1)
        h, dh = h * w, dh * w
        hidden_tall = mp.transpose(fg.quantize(h, (128, 1)))
        grads[2][e] = fg.multiply_quantized(tall(d_q, rows, floor=tiles.GRADIENT_FLOOR), hidden_tall)
        parts = []
        for i, d in enumerate((dh * u * (s * (1 + g * (1 - s))), dh * g * s)):
            d_row, d_tall = (fg.quantize(d, t, floor=tiles.GRADIENT_FLOOR) for t in ((1, 128), (128, 1)))
            parts.append(mp.keep_in_bf16(fg.multiply_quantized(d_row, mp.transpose(codes[i]))))
            grads[i][e] = fg.multiply_quantized(mp.transpose(d_tall), tall(x_q, rows))
        dx[rows, slot] = mp.keep_in_bf16(parts[0] + parts[1])
    out = sum(y[:, i] * weight[:, i, None] for i in range(a))
    return mp.keep_in_bf16(out), sum(dx[:, i] for i in range(a)), dweight, *grads


def test_routed_experts_are_those_of_the_chapters_functions_and_idle_ones_have_no_gradient(rng, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", "0")
    n, d, f, experts, per_token = 151, 131, 139, 7, 3
    x, dout = np.clip(wild_matrix(rng, (n, d)), -8, 8), 1e-6 * wild_matrix(rng, (n, d))
    index = np.stack([rng.permutation(5)[:per_token] for _ in range(n)])  # experts 5 and 6 are idle
    weight = rng.random((n, per_token)).astype(np.float32)
    gate, up = ((rng.standard_normal((experts, f, d)) / 12).astype(np.float32) for _ in range(2))
    down = (rng.standard_normal((experts, d, f)) / 12).astype(np.float32)
    leaves = [torch.from_numpy(t).requires_grad_() for t in (x, weight, np.concatenate([gate, up], 1), down)]
    out = ops.experts_in_fp8(leaves[0], leaves[1], torch.from_numpy(index), leaves[2], leaves[3], recipe.DISPATCHED)
    out.backward(torch.from_numpy(dout))
    want = experts_by_chapter(x, weight, index, gate, up, down, dout)
    np.testing.assert_array_equal(out.detach().numpy(), want[0])
    np.testing.assert_array_equal(leaves[0].grad.numpy(), want[1])
    np.testing.assert_allclose(leaves[1].grad.numpy(), want[2], rtol=1e-4, atol=1e-6 * np.abs(want[2]).max())
    np.testing.assert_array_equal(leaves[2].grad.numpy(), np.concatenate(want[3:5], 1))
    np.testing.assert_array_equal(leaves[3].grad.numpy(), want[5])
    assert not leaves[2].grad[5:].any()
    assert not leaves[3].grad[5:].any()
