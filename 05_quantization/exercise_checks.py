"""Checks of the exercises: each recognises the usual wrong answers and says what is wrong with them."""

from collections.abc import Callable

import fine_grained_quantization
import float_formats
import numpy as np
from exercise_words_05 import close, expect_arrays
from fine_grained_quantization import dequantize, quantize
from float_formats import E4M3, round_to


def check_decode_e4m3(answer: Callable) -> None:
    """All 256 codes."""
    codes = np.arange(256)
    want = float_formats.decode(codes, float_formats.E4M3)
    got = np.array([answer(int(code)) for code in codes], dtype=np.float64)
    assert not np.isinf(got).any(), "some code gave infinity: E4M3 has none, e = 15 is a normal exponent (up to 448)"
    top = (codes & 0x7F >= 0x78) & (codes & 0x7F < 0x7F)
    assert np.isfinite(got[top]).all(), "codes 0x78 to 0x7E are numbers from 256 to 448; only 0x7F and 0xFF are NaN"
    assert np.isnan(got[[0x7F, 0xFF]]).all(), "codes 0x7F and 0xFF are NaN"
    assert got[0x38] == 1.0, f"code 0x38 is 1.0, yours is {got[0x38]}; the bias is 7"
    small = codes < 8
    assert close(got[small], want[small]), (
        f"subnormals: code 0x01 is 2^-9 = 0.001953125, yours is {got[1]}; with e = 0 there is no leading 1, "
        "and the exponent is that of e = 1"
    )
    assert close(got[codes < 128], want[codes < 128]), "a normal number is 2^(e - 7) * (1 + m / 8)"
    assert close(got, want), "codes from 128 on are the negatives of the first 128"


def check_round_half_to_even(answer: Callable) -> None:
    """Every significand below 1024 with one to five bits dropped."""
    cases = [(s, d) for s in range(1024) for d in range(1, 6)]
    got = [answer(s, d) for s, d in cases]
    want = [round(s / 2**d) for s, d in cases]  # Python's own round goes to even, exactly for such small numbers
    if got != want:
        halfway = {(s, d) for s, d in cases if s % 2**d == 2 ** (d - 1)}
        assert got != [s >> d for s, d in cases], "you cut the bits off: 0b111 with 2 dropped is 1.75 and must give 2"
        wrong = {case for case, g, w in zip(cases, got, want) if g != w}
        assert not wrong <= halfway, (
            f"only ties are wrong, for example {min(wrong)}: 2.5 goes to 2 and 3.5 to 4, always to the even neighbour"
        )
        first = min(wrong)
        raise AssertionError(f"{first[0]} with {first[1]} bits dropped should give {round(first[0] / 2 ** first[1])}")


def check_scale_tile(answer: Callable) -> None:
    """Plain scales, powers of two, and an empty tile."""
    tile = np.array([0.001, 0.0025, -0.3, 0.004])
    zero = answer(np.zeros(4), False)
    assert zero > 0, f"an all-zero tile has scale {zero}: x / s would be NaN; use the floor of 1e-4"
    plain = answer(tile, False)
    assert not close(plain, 448 / 0.3), "this is the factor to multiply by; the scale is what the code is multiplied by"
    assert not close(plain, 0.004 / 448), "the largest *magnitude* counts: -0.3 is the largest here"
    assert close(plain, 0.3 / 448), f"0.3 / 448 = {0.3 / 448:.6e}, yours is {plain:.6e}"
    up = answer(tile, True)
    assert up != 2.0**-11, (
        "2^-11 is below 0.3 / 448: the largest element would be 614 > 448; go up, not down or nearest"
    )
    assert up == 2.0**-10, f"the smallest power of two not below 0.3 / 448 is 2^-10, yours is {up}"
    exact = answer(np.array([448.0 * 2**-5]), True)
    assert exact == 2.0**-5, f"2^-5 is a power of two already and stays; yours became {exact}"
    assert answer(np.zeros(4), True) == 2.0**-22, (
        "the floor holds for powers of two as well: 1e-4 / 448 goes up to 2^-22"
    )


def check_multiply_tiles(answer: Callable) -> None:
    """Ragged sizes, so that a wrong tile shows."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(-8, 9, (5, 11)).astype(float), rng.integers(-8, 9, (7, 11)).astype(float)
    scale_a, scale_b = rng.uniform(0.5, 2, (5, 3)), rng.uniform(0.5, 2, (2, 3))
    got = np.asarray(answer(a, scale_a, b, scale_b, 4))
    spread = fine_grained_quantization.spread
    wide_a, wide_b = spread(scale_a, (1, 4), a.shape), spread(scale_b, (4, 4), b.shape)
    assert got.shape == (5, 7), f"the result is [N, F] = (5, 7), yours is {got.shape}; b is stored [F, K]"
    assert not close(got, a @ b.T), "the scales are missing"
    assert not close(got, (a * wide_a) @ b.T), "the scales of b are missing"
    assert not close(got, (a * wide_a**2) @ (b * wide_b**2).T), "each scale is multiplied in twice"
    assert not close(got, (a / wide_a) @ (b / wide_b).T), "you divided by the scales; reading back multiplies"
    short = (a[:, :8] * wide_a[:, :8]) @ (b[:, :8] * wide_b[:, :8]).T
    assert not close(got, short), "the last, short tile of K (columns 8 to 10) is left out"
    wrapped = b * scale_b[np.arange(7) % 2].repeat(4, axis=1)[:, :11]
    assert not close(got, (a * wide_a) @ wrapped.T), "scale row of output f is f // tile, not f % number of rows"
    assert close(got, (a * wide_a) @ (b * wide_b).T), (
        "the sum is not right: compare it with a tile of one column, by hand"
    )


def check_add_on_tensor_core(answer: Callable) -> None:
    """Small cases that each leave one mistake visible."""
    got = answer(0.0, np.array([64.0, 1.99, -1.99]), 6)
    assert got == 64.0, (
        f"64, 1.99 and -1.99 with 6 bits: the unit is 2, both small ones are cut to 0 (np.trunc); you got {got}"
    )
    got = answer(0.0, np.array([64.0, -1.5]), 7)
    assert got != 62.0, "-1.5 with unit 1 is cut to -1 (towards zero), not to -2: np.trunc, not floor or round"
    assert got == 63.0, f"64 - 1.5 with 7 bits is 64 - 1 = 63, you got {got}"
    got = answer(2.0**14, np.full(32, 0.9), 14)
    assert got < 2.0**14 + 20, "the sum so far is the largest here: it sets the unit, 2, and every 0.9 vanishes"
    assert got == 2.0**14, f"2^14 plus 32 times 0.9 with 14 bits stays 2^14, you got {got}"
    got = answer(1.0, np.array([2.0**10]), 8)
    assert got == 2.0**10, (
        f"a small sum is cut like any other term: 1 beside 1024 with 8 bits (unit 8) is 0; you got {got}"
    )
    exact = answer(3.0, np.array([1.0, 2.0, -4.0]), 14)
    assert exact == 2.0, f"few bits, nothing to cut: 3 + 1 + 2 - 4 = 2, you got {exact}"


def check_turn_tile(answer: Callable) -> None:
    """A square whose rows differ in size, so that the old scales matter."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((6, 6)) * np.exp(rng.standard_normal((6, 1)))
    scale = np.abs(x).max(axis=1, keepdims=True) / 448
    code = round_to(x / scale, E4M3)
    value = code * scale
    new = np.abs(value).max(axis=0, keepdims=True) / 448
    kept = code.copy(), scale.copy()
    got = answer(code, scale, lambda a: round_to(np.asarray(a, dtype=float), E4M3))
    assert np.array_equal(code, kept[0]), "the codes were changed in place; return new arrays"
    if isinstance(got, tuple | list) and len(got) == 2 and close(got[1], np.abs(code).max(axis=0, keepdims=True) / 448):
        raise AssertionError("scales: codes of different rows have different scales; read them back before comparing")
    if isinstance(got, tuple | list) and len(got) == 2 and np.shape(got[1]) == (6, 1):
        raise AssertionError("scales: one for each COLUMN is asked, shape [1, 6]: the maximum runs over the rows")
    usual = {
        "codes": {
            "those are values, not codes: divide by the new scale": value,
            "you have not rounded to E4M3 again": value / new,
            "the old codes cannot stay: another scale belongs to them now": code,
        },
        "scales": {"the scale of a code is largest / 448; this is the factor to multiply by": 1 / new},
    }
    expect_arrays(got, {"codes": round_to(value / new, E4M3), "scales": new}, usual)


def check_linear_backward(answer: Callable) -> None:
    """Two blocks each way, so that the direction of every tile shows."""
    rng = np.random.default_rng(8)
    dy = rng.standard_normal((256, 130)) * np.exp(2 * rng.standard_normal((256, 1))) * np.exp(rng.standard_normal(130))
    x, weight = rng.standard_normal((256, 3)) * np.exp(rng.standard_normal((256, 1))), rng.standard_normal((130, 3))
    asked = []

    def tiles(array, rows, columns):
        asked.append((np.shape(array), rows, columns))
        return dequantize(quantize(array, (rows, columns), floor=2.0**-100)).astype(float)

    want = {
        "dx": tiles(dy, 1, 128) @ weight,
        "dweight": tiles(dy, 128, 1).T @ tiles(x, 128, 1),
    }
    usual = {
        "dx": {
            "nothing was rounded: dy goes into the product in E4M3, tiles along the sum over F": dy @ weight,
            "dx sums over out-features: tiles of dy must lie along F, 1 x 128": tiles(dy, 128, 1) @ weight,
            "blocks of 128 x 128 for dy: tokens with small gradients then share a scale with large ones": (
                tiles(dy, 128, 128) @ weight
            ),
            "the weight has been rounded again in tiles of another shape; its square blocks serve as they are": (
                tiles(dy, 1, 128) @ tiles(weight, 128, 1)
            ),
        },
        "dweight": {
            "nothing was rounded: both operands go into the product in E4M3": dy.T @ x,
            "dweight sums over tokens: tiles of dy must be 128 x 1": tiles(dy, 1, 128).T @ tiles(x, 128, 1),
            "x is kept in 1 x 128; the sum over tokens needs it turned, 128 x 1": tiles(dy, 128, 1).T @ x,
            "x must lie in 128 x 1 for a sum over tokens, not in 1 x 128": tiles(dy, 128, 1).T @ tiles(x, 1, 128),
        },
    }
    expect_arrays(answer(dy.copy(), x.copy(), weight.copy(), tiles), want, usual)


def check_kept_swiglu_backward(answer: Callable) -> None:
    """Three layers in FP8 around a middle that is made again."""
    rng = np.random.default_rng(11)

    def tiles(array, rows, columns):
        return dequantize(quantize(np.asarray(array, np.float32), (rows, columns), floor=1e-20))

    def both(dy, x, w):
        return tiles(dy, 1, 128) @ w, tiles(dy, 128, 1).T @ tiles(x, 128, 1)

    dy, x = rng.standard_normal((6, 5)), tiles(rng.standard_normal((6, 5)), 1, 128)
    names = ("gate_proj", "up_proj", "down_proj")
    w = {n: tiles(rng.standard_normal((5, 7) if n == "down_proj" else (7, 5)), 128, 128) for n in names}
    g, u = (tiles(x @ w[n].T, 1, 128) for n in names[:2])
    s = 1 / (1 + np.exp(-g))
    dh, ddown = both(dy, g * s * u, w["down_proj"])
    slope = s * (1 + g * (1 - s))
    (dx_g, dgate), (dx_u, dup) = both(dh * u * slope, x, w["gate_proj"]), both(dh * g * s, x, w["up_proj"])
    sigmoid_slope, bare = both(dh * u * s * (1 - s), x, w["gate_proj"]), both(dh * u * s, x, w["gate_proj"])
    usual = {
        "dx": {
            "x was read by both matrices; the way through up_proj is missing": dx_g,
            "x was read by both matrices; the way through gate_proj is missing": dx_u,
            "that is the sigmoid's slope; silu(g) = g s(g) has s (1 + g (1 - s))": sigmoid_slope[0] + dx_u,
            "silu's slope has a second term: g itself moves the sigmoid": bare[0] + dx_u,
        },
        "ddown_proj": {
            "down_proj read h = silu(g) * u; you used u alone": both(dy, u, w["down_proj"])[1],
            "the gate is silu(g) = g s(g), not the sigmoid": both(dy, s * u, w["down_proj"])[1],
            "h goes into the product in E4M3 as well, 128 x 1": tiles(dy, 128, 1).T @ (g * s * u),
        },
    }
    want = {"dx": dx_g + dx_u, "dgate_proj": dgate, "dup_proj": dup, "ddown_proj": ddown}
    expect_arrays(answer(dy.copy(), x.copy(), g.copy(), u.copy(), dict(w), tiles), want, usual)


def check_fp8_linear_from_an_empty_file(answer: Callable) -> None:
    """Ragged sizes, tokens and features of very different size; tiles of four."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((6, 7)) * np.exp(2 * rng.standard_normal((6, 1)))
    weight, dy = rng.standard_normal((5, 7)), rng.standard_normal((6, 5)) * np.exp(2 * rng.standard_normal((6, 1)))
    values = float_formats.decode(np.arange(127), E4M3)
    codes = np.unique(np.concatenate([-values, values]))

    def tiles(array, rows, columns):
        scales = fine_grained_quantization.largest_of_tiles(array, (rows, columns)) / 448
        wide = fine_grained_quantization.spread(scales, (rows, columns), array.shape)
        return round_to(array / wide, E4M3) * wide

    x8, w8 = tiles(x, 1, 4), tiles(weight, 4, 4)
    want = {"y": x8 @ w8.T, "dx": tiles(dy, 1, 4) @ w8, "dweight": tiles(dy, 4, 1).T @ tiles(x8, 4, 1)}
    usual = {
        "y": {
            "nothing was rounded": x @ weight.T,
            "x has one scale for the whole matrix; every 1 x 4 numbers have their own": (
                tiles(x, *x.shape) @ tiles(weight, *weight.shape).T
            ),
            "the weight is in 1 x 4; its blocks are square, 4 x 4, so that they serve dx too": (
                x8 @ tiles(weight, 1, 4).T
            ),
            "x is in 4 x 4; a token must not share its scale with others": tiles(x, 4, 4) @ w8.T,
            "the weight was not rounded": x8 @ weight.T,
        },
        "dx": {
            "dx sums over out-features: tiles of dy are 1 x 4": tiles(dy, 4, 1) @ w8,
            "dy was not rounded": dy @ w8,
            "the weight of the product is the rounded one": tiles(dy, 1, 4) @ weight,
        },
        "dweight": {
            "x for the third product is made of the codes that were kept, not of the original": (
                tiles(dy, 4, 1).T @ tiles(x, 4, 1)
            ),
            "x must be turned: rounded again in 4 x 1, along the tokens that are summed": tiles(dy, 4, 1).T @ x8,
            "dweight sums over tokens: tiles of dy are 4 x 1": tiles(dy, 1, 4).T @ tiles(x8, 4, 1),
            "dy and x were not rounded": dy.T @ x,
        },
    }
    expect_arrays(answer(x.copy(), weight.copy(), dy.copy(), codes), want, usual)
