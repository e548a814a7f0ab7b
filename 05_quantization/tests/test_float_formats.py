"""Every code and every 16-bit input against independent tables; both overflow policies; the formats' corners."""

import float_formats as ff
import numpy as np
import pytest
from float_formats import BF16, E4M3, E5M2, E5M6, FP16, OVERFLOW_TO_NAN, SATURATE, UE8M0, decode, encode

ml_dtypes = pytest.importorskip("ml_dtypes")
PEERS = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "BF16": ml_dtypes.bfloat16,
    "FP16": np.float16,
    "UE8M0": ml_dtypes.float8_e8m0fnu,
}
EIGHT_BITS = (E4M3, E5M2)
EVERY_16_BITS = np.arange(65536, dtype=np.uint16)
quiet = pytest.mark.filterwarnings("ignore:.*encountered in.*cast.*:RuntimeWarning")  # the peers' own casts


def peer_values(codes, fmt):
    return codes.view(PEERS[fmt.name]).astype(np.float64)


def peer_codes(x, fmt):
    return x.astype(PEERS[fmt.name]).view(fmt.code_type)


def clip_as_a_peer_would_not(x, fmt):
    """Saturation, spelled out for a peer that only overflows; NaN passes."""
    return np.clip(x, x.dtype.type(-fmt.largest), x.dtype.type(fmt.largest))


def assert_same_codes(got, want, fmt):
    differ = got != want
    got, want = got[differ], want[differ]
    wrong = ~(np.isnan(decode(got, fmt)) & np.isnan(decode(want, fmt)))  # one NaN is as good as another
    assert not wrong.any(), f"{wrong.sum()} codes of {fmt.name} differ, the first: {got[wrong][:3]} {want[wrong][:3]}"


@quiet
@pytest.mark.parametrize("fmt", [E4M3, E5M2, UE8M0, BF16, FP16], ids=lambda f: f.name)
def test_every_code_decodes_to_the_value_of_an_independent_table(fmt):
    codes = np.arange(1 << fmt.bits).astype(fmt.code_type)
    np.testing.assert_array_equal(decode(codes, fmt), peer_values(codes, fmt))


@pytest.mark.parametrize("fmt", [*ff.FORMATS, ff.FloatFormat("E3M4", 3, 4, "none")], ids=lambda f: f.name)
def test_every_code_survives_decoding_and_encoding(fmt):
    codes = np.arange(1 << fmt.bits).astype(fmt.code_type)
    values = decode(codes, fmt)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(encode(values[finite], fmt), codes[finite])


@quiet
@pytest.mark.parametrize("policy", [SATURATE, OVERFLOW_TO_NAN])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("source", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, BF16, FP16], ids=lambda f: f.name)
def test_every_16_bit_input_is_encoded_as_an_independent_cast_does(fmt, source, dtype, policy):
    x = EVERY_16_BITS.view(source).astype(dtype)
    want = peer_codes(x if policy == OVERFLOW_TO_NAN else clip_as_a_peer_would_not(x, fmt), fmt)
    assert_same_codes(encode(x, fmt, overflow=policy), want, fmt)


@quiet
def test_a_scale_is_encoded_as_an_independent_cast_does():
    x = EVERY_16_BITS.view(ml_dtypes.bfloat16).astype(np.float32)
    x = x[~((x > 0) & (x < 2.0**-126))]  # there ml_dtypes rounds 1.02 * 2^-127 up to 2^-126; we go to the nearest
    assert_same_codes(encode(x, UE8M0, overflow=OVERFLOW_TO_NAN), peer_codes(x, UE8M0), UE8M0)


@quiet
@pytest.mark.parametrize("policy", [SATURATE, OVERFLOW_TO_NAN])
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=lambda f: f.name)
def test_random_bits_of_float32_are_encoded_as_an_independent_cast_does(fmt, policy, rng):
    x = rng.integers(0, 2**32, 300_007, dtype=np.uint64).astype(np.uint32).view(np.float32)
    want = peer_codes(x if policy == OVERFLOW_TO_NAN else clip_as_a_peer_would_not(x, fmt), fmt)
    assert_same_codes(encode(x, fmt, overflow=policy), want, fmt)


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=lambda f: f.name)
def test_every_float32_is_encoded_as_an_independent_cast_does(fmt):
    """All 2^32 of them, in pieces of 2^24; most of a minute for each format on a quiet core."""
    piece = np.arange(1 << 24, dtype=np.uint32)
    for high in range(256):
        x = (piece | np.uint32(high << 24)).view(np.float32)
        assert_same_codes(encode(x, fmt, overflow=OVERFLOW_TO_NAN), peer_codes(x, fmt), fmt)


@quiet
@pytest.mark.parametrize("fmt", EIGHT_BITS, ids=lambda f: f.name)
def test_float64_is_rounded_once_not_by_way_of_float32(fmt):
    """A hair above a tie: float32 would drop the hair, and the tie would then go the wrong way."""
    finite = decode(np.arange(fmt.largest_code + 1), fmt)
    ties = (finite[:-1] + finite[1:]) / 2
    np.testing.assert_array_equal(encode(np.nextafter(ties, np.inf), fmt), np.arange(1, fmt.largest_code + 1))
    np.testing.assert_array_equal(encode(np.nextafter(ties, 0), fmt), np.arange(fmt.largest_code))


def test_ties_go_to_the_even_code():
    finite = decode(np.arange(E4M3.largest_code + 1), E4M3)
    codes = encode((finite[:-1] + finite[1:]) / 2, E4M3)
    assert not (codes % 2).any()
    np.testing.assert_array_equal(np.abs(codes - (np.arange(E4M3.largest_code) + 0.5)), 0.5)


def test_the_golden_roundings_of_e4m3():
    x = np.array([0.3, 0.1, 1 / 3, 17, 19, 449, 0.0005, 2.0**-10, 0.00098])
    want = [0.3125, 0.1015625, 0.34375, 16, 20, 448, 0, 0, 2.0**-9]
    np.testing.assert_array_equal(ff.round_to(x, E4M3), want)
    golden = {0x01: 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x7E: 448.0}
    assert {code: float(decode(np.array(code), E4M3)) for code in golden} == golden
    assert np.isfinite(decode(np.arange(128), E4M3)).sum() == 127


def test_the_properties_of_the_formats_are_those_of_the_literature():
    assert [f.bias for f in (E4M3, E5M2, E5M6, BF16, FP16, UE8M0)] == [7, 15, 15, 127, 15, 127]
    assert (E4M3.largest, E5M2.largest, FP16.largest) == (448.0, 57344.0, 65504.0)
    assert (E4M3.smallest_normal, E4M3.smallest) == (2.0**-6, 2.0**-9)
    assert (E5M2.smallest_normal, E5M2.smallest) == (2.0**-14, 2.0**-16)
    assert (E5M6.bits, E5M6.largest, E5M6.code_type) == (12, 65024.0, np.uint16)
    assert (E4M3.nan_code, E5M2.nan_code, BF16.nan_code) == (0x7F, 0x7E, 0x7FC0)


def test_saturation_and_overflow_part_ways_half_a_step_beyond_the_largest():
    x = np.array([448, 464, np.nextafter(464, 465), 1e30, np.inf, -np.inf])
    assert encode(x, E4M3, overflow=SATURATE).tolist() == [0x7E] * 5 + [0xFE]
    assert encode(x, E4M3, overflow=OVERFLOW_TO_NAN).tolist() == [0x7E, 0x7E, 0x7F, 0x7F, 0x7F, 0xFF]
    assert decode(encode(np.array([61440.0]), E5M2, overflow=OVERFLOW_TO_NAN), E5M2)[0] == np.inf


def test_nan_stays_nan_under_both_policies_and_zero_keeps_its_sign():
    for fmt in (E4M3, E5M2, E5M6, BF16, FP16):
        for policy in (SATURATE, OVERFLOW_TO_NAN):
            assert np.isnan(decode(encode(np.array([np.nan, -np.nan]), fmt, overflow=policy), fmt)).all()
        assert encode(np.array([0.0, -0.0]), fmt).tolist() == [0, fmt.sign_bit]


def test_a_scale_format_has_no_code_for_zero_or_below():
    assert encode(np.array([1.0, 2.0**-127, 2.0**127, 1e-60, 1e60]), UE8M0).tolist() == [127, 0, 254, 0, 254]
    assert np.isnan(decode(encode(np.array([0.0, -1.0, -np.inf, np.nan]), UE8M0), UE8M0)).all()


def test_codes_are_in_the_order_of_their_values_so_that_a_carry_needs_no_care():
    for fmt in ff.FORMATS:
        assert (np.diff(decode(np.arange(fmt.largest_code + 1), fmt)) > 0).all()
    assert decode(encode(np.array([15.9]), E4M3), E4M3) == 16.0  # 1.111 carries into the next exponent


def test_the_shape_is_kept_down_to_nothing_and_across_the_chunks():
    assert encode(np.float32(1.0), E4M3).shape == ()
    assert encode(np.zeros((0, 3)), E4M3).shape == (0, 3)
    x = np.linspace(-500, 500, ff.CHUNK + 1006).astype(np.float32)
    np.testing.assert_array_equal(encode(x, E4M3), [encode(one, E4M3) for one in x])
    np.testing.assert_array_equal(encode(x[::2].reshape(-1, 1), E4M3).ravel(), encode(x, E4M3)[::2])


def test_the_power_of_two_ceiling_leaves_powers_alone_and_takes_the_rest_up():
    exact = 2.0 ** np.arange(-20, 20)
    np.testing.assert_array_equal(ff.power_of_two_ceiling(exact), exact)
    np.testing.assert_array_equal(ff.power_of_two_ceiling(np.nextafter(exact, np.inf)), 2 * exact)
    assert ff.power_of_two_ceiling(np.float32([3.0])).dtype == np.float32


def test_wrong_settings_are_refused_with_the_mend():
    with pytest.raises(ValueError, match="choose 'saturate' or 'nan'"):
        encode(np.ones(2), E4M3, overflow="wrap")
    with pytest.raises(ValueError, match="has no NaN"):
        encode(np.ones(2), ff.FloatFormat("E3M4", 3, 4, "none"), overflow=OVERFLOW_TO_NAN)
    with pytest.raises(ValueError, match="has no NaN"):
        _ = ff.FloatFormat("E3M4", 3, 4, "none").nan_code
