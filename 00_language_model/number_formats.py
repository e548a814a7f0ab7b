"""Number formats on one page: what a float is, how FP32, BF16, FP16 and FP8 differ, and where small steps vanish.

    python number_formats.py    a worked example to follow with a pencil, and a table of the formats
    number_formats.ipynb        the same on the whiteboard

Source: IEEE 754 for FP32 and FP16; E4M3 and E5M2: Micikevicius et al. 2022 (arXiv:2209.05433). Chapter 05 builds these
formats bit by bit; here they are only rounded to.
"""

from typing import NamedTuple

import numpy as np


class NumberFormat(NamedTuple):
    """A float by the widths of its two fields; one more bit is the sign."""

    exponent_bits: int  # how far: the range
    mantissa_bits: int  # how fine: digits
    largest: float  # the largest finite value; E4M3 gives only one code to "not a number", so it reaches 448

    @property
    def lowest_exponent(self) -> int:
        """Exponent of the smallest number with full precision; below it the steps stay as wide as there."""
        return 2 - 2 ** (self.exponent_bits - 1)


FORMATS = {
    "FP32": NumberFormat(8, 23, float(np.finfo(np.float32).max)),
    "BF16": NumberFormat(8, 7, (2 - 2.0**-7) * 2.0**127),
    "FP16": NumberFormat(5, 10, 65504.0),
    "E5M2": NumberFormat(5, 2, 57344.0),
    "E4M3": NumberFormat(4, 3, 448.0),
}


def split_float(x: float) -> tuple[int, int, float]:
    """Take a number apart: sign, exponent, and a mantissa from 1 up to 2.

        x = sign * 2^exponent * mantissa

    Raises:
        ValueError: zero, infinity or NaN, which have no such parts.
    """
    if not np.isfinite(x) or x == 0:
        raise ValueError(f"{x} has no exponent; give a finite number other than zero")
    half, power = np.frexp(abs(x))  # from 0.5 up to 1, so one power lower
    return (1 if x > 0 else -1), int(power) - 1, float(2 * half)


def step_near(x: np.ndarray, fmt: NumberFormat) -> np.ndarray:
    """Distance between neighbours at x: 2^(exponent - mantissa bits), constant below the lowest exponent."""
    _, power = np.frexp(np.abs(x))
    exponent = np.maximum(np.where(x == 0, fmt.lowest_exponent, power - 1), fmt.lowest_exponent)
    return np.ldexp(1.0, exponent - fmt.mantissa_bits)


def round_number(x: np.ndarray, fmt: NumberFormat) -> np.ndarray:
    """Round to the nearest number of the format, halves to the even neighbour.

        step * round(x / step)        (x / step is exact: the step is a power of two)

    Args:
        x: float64.
    Returns:
        float64 that the format can hold; what rounds beyond its largest number becomes infinite.
    """
    x = np.asarray(x, dtype=np.float64)
    step = step_near(np.where(np.isfinite(x), x, 0.0), fmt)
    rounded = np.round(x / step) * step  # np.round sends halves to even
    return np.where(np.abs(rounded) > fmt.largest, np.copysign(np.inf, x), rounded)


def add_steps(start: float, step: float, n_steps: int, fmt: NumberFormat) -> np.ndarray:
    """Add the same small step again and again, rounding after each addition, as a weight in this format is trained."""
    values = [start]
    for _ in range(n_steps):
        values.append(float(round_number(np.array(values[-1] + step), fmt)))
    return np.array(values)


def main() -> None:
    """Take a number apart, round it to every format, and let a weight of 1 take small steps."""
    sign, exponent, mantissa = split_float(-6.5)
    print(f"-6.5 = {sign} * 2^{exponent} * {mantissa}; in bits the mantissa is 1.101, for 1 + 1/2 + 0/4 + 1/8 = 1.625")
    print("\nformat  bits  largest     step at 1   0.1 becomes     70,000 becomes   1e-8 becomes")
    for name, fmt in FORMATS.items():
        bits = 1 + fmt.exponent_bits + fmt.mantissa_bits
        tenth, large, small = round_number(np.array([0.1, 70_000.0, 1e-8]), fmt)
        print(f"{name:6} {bits:5}  {fmt.largest:<10.4g}  2^-{fmt.mantissa_bits:<2}       {tenth:<14.9g}", end="  ")
        print(f"{large:<15.9g}  {small:.3g}")
    print("\na weight of 1 takes 1,000 steps of 0.001; it should arrive at 2")
    for name, fmt in FORMATS.items():
        print(f"  {name}: {add_steps(1.0, 0.001, 1000, fmt)[-1]:.6g}")


if __name__ == "__main__":
    main()
