"""Checks of the exercises: each recognises the usual wrong answers and says what is wrong with them."""

import fine_grained_quantization
import float_formats
import numpy as np


def close(got, want) -> bool:
    """Equal up to float64 rounding in another order."""
    return np.shape(got) == np.shape(want) and np.allclose(got, want, rtol=1e-6, atol=1e-12, equal_nan=True)


def check_decode_e4m3(answer):
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


def check_round_half_to_even(answer):
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


def check_scale_tile(answer):
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


def check_multiply_tiles(answer):
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


def check_add_on_tensor_core(answer):
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
