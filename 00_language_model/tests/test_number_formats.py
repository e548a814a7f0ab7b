"""Rounding to a format, against NumPy and ml_dtypes."""

import numpy as np
import pytest
from number_formats import FORMATS, add_steps, round_number, split_float, step_near

NUMBERS = np.concatenate(
    [[0.0, -0.0, 1.0, 448.0, 464.0, 465.0, 65504.0, 65520.0, 2.0**-9, 2.0**-10, 2.0**-24, 3e-8, 1e-40, np.inf, -np.inf]]
    + [np.random.default_rng(0).normal(size=500) * 10.0**e for e in range(-9, 5)]
)


@pytest.mark.parametrize(("name", "dtype"), [("FP32", np.float32), ("FP16", np.float16)])
def test_it_rounds_as_numpy_casts(name, dtype):
    with np.errstate(over="ignore", under="ignore"):
        want = NUMBERS.astype(dtype).astype(np.float64)
    np.testing.assert_array_equal(round_number(NUMBERS, FORMATS[name]), want)


@pytest.mark.parametrize(("name", "dtype"), [("BF16", "bfloat16"), ("E5M2", "float8_e5m2"), ("E4M3", "float8_e4m3fn")])
def test_it_rounds_as_ml_dtypes_casts(name, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    numbers = NUMBERS.astype(np.float32)  # ml_dtypes goes by float32
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        want = numbers.astype(getattr(ml_dtypes, dtype)).astype(np.float64)
    got = round_number(numbers.astype(np.float64), FORMATS[name])
    beyond = np.isnan(want)  # E4M3 has no infinity; the cast gives NaN
    assert np.isinf(got[beyond]).all()
    np.testing.assert_array_equal(got[~beyond], want[~beyond])


def test_a_number_is_the_product_of_its_parts():
    for x in (-6.5, 1.0, 0.1, 1e30):
        sign, exponent, mantissa = split_float(x)
        assert sign * 2.0**exponent * mantissa == x
        assert 1 <= mantissa < 2
    for x in (0.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="has no exponent"):
            split_float(x)


def test_halves_go_to_the_even_neighbour():
    assert round_number(np.array([17.0, 19.0, -17.0]), FORMATS["E4M3"]).tolist() == [16, 20, -16]


def test_below_the_lowest_exponent_the_marks_are_even():
    assert step_near(np.array([0.0, 2.0**-8, 2.0**-6]), FORMATS["E4M3"]).tolist() == [2.0**-9] * 3


def test_a_weight_of_one_in_bf16_takes_no_small_step():
    assert add_steps(1.0, 0.001, 100, FORMATS["BF16"])[-1] == 1.0
    assert add_steps(0.2, 0.001, 100, FORMATS["BF16"])[-1] > 0.25
    assert add_steps(1.0, 0.001, 100, FORMATS["FP32"])[-1] == pytest.approx(1.1, abs=1e-5)
