"""Any small float format from its two widths: encode by integer arithmetic, decode by table.

A float is a sign, an exponent field e and a mantissa field m of M bits, kept side by side in one integer, the *code*:

    e > 0    value = (-1)^sign * 2^(e - bias)     * (1 + m / 2^M)      normal: a leading 1 that is not stored
    e = 0    value = (-1)^sign * 2^(1 - bias)     * (0 + m / 2^M)      subnormal: even steps down to zero

Because e stands left of m, codes of one sign are in the order of their values, and a rounding that carries out of the
mantissa lands in the next exponent by itself. That is why rounding can be done on the integers.

Run:       python float_formats.py          a worked example          python float_formats.py --speed    elements/s
Notebook:  float_formats.ipynb
Source:    arXiv:2412.19437, 3.3; E4M3 and E5M2: arXiv:2209.05433; UE8M0: the OCP microscaling formats.
"""

import sys
import time
from dataclasses import dataclass
from functools import cache

import numpy as np

SATURATE, OVERFLOW_TO_NAN = "saturate", "nan"  # what happens beyond the largest value, when inputs overflow
CHUNK = 8192  # elements: every array of one chunk stays in the core's own cache


@dataclass(frozen=True)
class FloatFormat:
    """A format by its widths; `specials` says what the top of the range is spent on.

    "ieee"   the whole last exponent: mantissa 0 is infinity, everything else NaN (E5M2, E5M6, BF16, FP16)
    "fn"     finite, with one NaN: only the last code of each sign is lost (E4M3, UE8M0)
    "none"   every code is a finite number: the plain count of what the bits can say
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str = "ieee"
    signed: bool = True
    subnormals: bool = True

    @property
    def bias(self) -> int:
        """The exponent field of 1.0."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def bits(self) -> int:
        """The width of a code, sign included."""
        return self.exponent_bits + self.mantissa_bits + self.signed

    @property
    def sign_bit(self) -> int:
        """The code of -0, or 0 for a format without signs."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def largest_code(self) -> int:
        """The code of the largest finite value."""
        last = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return last - {"ieee": 1 << self.mantissa_bits, "fn": 1, "none": 0}[self.specials]

    @property
    def nan_code(self) -> int:
        """A quiet NaN: the last code, or all exponent bits with the top bit of the mantissa."""
        if self.specials == "none":
            raise ValueError(f"{self.name} has no NaN; encode finite numbers, and saturate")
        return self.largest_code + 1 + ((1 << self.mantissa_bits) >> 1 if self.specials == "ieee" else 0)

    @property
    def code_type(self) -> type:
        """The NumPy integer that holds a code."""
        return np.uint8 if self.bits <= 8 else np.uint16

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(values_of(self)[self.largest_code])

    @property
    def smallest(self) -> float:
        """The smallest value above zero."""
        return float(values_of(self)[1 if self.subnormals else 0])

    @property
    def smallest_normal(self) -> float:
        """Where the even steps of the subnormals end."""
        return 2.0 ** (1 - self.bias) if self.subnormals else self.smallest


E4M3 = FloatFormat("E4M3", 4, 3, "fn")
E5M2 = FloatFormat("E5M2", 5, 2)
E5M6 = FloatFormat("E5M6", 5, 6)  # the report gives only the widths; we take the IEEE layout
BF16 = FloatFormat("BF16", 8, 7)
FP16 = FloatFormat("FP16", 5, 10)
UE8M0 = FloatFormat("UE8M0", 8, 0, "fn", signed=False, subnormals=False)  # a power of two, for scales
FORMATS = (E4M3, E5M2, E5M6, BF16, FP16, UE8M0)


@cache
def values_of(fmt: FloatFormat) -> np.ndarray:
    """Tabulate the value of every code, in float64: the definition at the top of this file, and nothing else."""
    magnitude = np.arange(1 << (fmt.exponent_bits + fmt.mantissa_bits))
    exponent, mantissa = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
    leading = np.where((exponent > 0) | (not fmt.subnormals), 1.0, 0.0)
    power = np.maximum(exponent, 1) if fmt.subnormals else exponent
    values = np.ldexp(leading + mantissa / 2.0**fmt.mantissa_bits, power - fmt.bias)
    values[fmt.largest_code + 1 :] = np.nan
    if fmt.specials == "ieee":
        values[fmt.largest_code + 1] = np.inf
    values = np.concatenate([values, -values]) if fmt.signed else values
    values.flags.writeable = False
    return values


def decode(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Look the codes up in the table of values, float64."""
    return values_of(fmt)[codes]


def encode(x: np.ndarray, fmt: FloatFormat, *, overflow: str = SATURATE) -> np.ndarray:
    """Round to the nearest code, ties to the even one, from the bits of `x`.

        shift  = (source mantissa bits - M) + how far the exponent lies below the smallest normal
        code   = (exponent - smallest) * 2^M  +  significand / 2^shift, rounded

    Args:
        x: float32 or float64 of any shape (others are taken to float64); each is rounded once, never twice.
        overflow: "saturate" gives the largest finite value, for infinity too; "nan" gives what the format has for it:
            NaN in E4M3, infinity in the IEEE layouts. NaN stays NaN either way.
    Returns:
        codes of the shape of `x`, uint8 or uint16.
    Raises:
        ValueError: an unknown policy, or "nan" for a format that has no NaN.
    """
    if overflow not in (SATURATE, OVERFLOW_TO_NAN):
        raise ValueError(f"overflow={overflow!r}; choose {SATURATE!r} or {OVERFLOW_TO_NAN!r}")
    beyond = fmt.largest_code if overflow == SATURATE else fmt.largest_code + 1
    if overflow == OVERFLOW_TO_NAN and fmt.specials == "none":
        raise ValueError(f"{fmt.name} has no NaN to overflow to; use overflow={SATURATE!r}")
    x = np.asarray(x)
    wide = x.dtype != np.float32 or fmt.exponent_bits == 8  # float32 has no room below BF16 and UE8M0: go by float64
    with np.errstate(invalid="ignore"):  # a signalling NaN only turns quiet
        flat = np.ascontiguousarray(x, dtype=np.float64 if wide else np.float32).ravel()
    codes = np.empty(flat.shape, fmt.code_type)
    for start in range(0, flat.size, CHUNK):
        codes[start : start + CHUNK] = _encode_chunk(flat[start : start + CHUNK], fmt, beyond)
    return codes.reshape(x.shape)


def _encode_chunk(x: np.ndarray, fmt: FloatFormat, beyond: int) -> np.ndarray:
    """Encode one chunk; float32 and float64 differ only in their widths."""
    word, width, stored, source_bias = (np.uint32, 32, 23, 127) if x.dtype == np.float32 else (np.uint64, 64, 52, 1023)
    bits = x.view(word)
    magnitude = bits & word((1 << (width - 1)) - 1)
    smallest = word(source_bias - fmt.bias + fmt.subnormals)  # the source's exponent field of our smallest normal
    exponent = magnitude >> word(stored)
    kept = np.maximum(exponent, smallest)

    shift = kept - exponent  # > 0 for what becomes subnormal here
    np.minimum(shift, word(fmt.mantissa_bits + 2), out=shift)  # by then nothing is left but zero
    shift += word(stored - fmt.mantissa_bits)
    significand = magnitude & word((1 << stored) - 1)
    significand |= word(1 << stored)  # the leading 1; the source's own subnormals are far below half our smallest

    odd = (significand >> shift) & word(1)
    significand += (word(1) << (shift - word(1))) - word(1) + odd  # just under half, one more when odd: ties to even
    code = significand >> shift
    code += (kept - smallest) << word(fmt.mantissa_bits)

    if not fmt.subnormals:  # the counting starts one lower, and there is nothing below code 0
        code = np.maximum(code, word(1)) - word(1)
    np.minimum(code, word(beyond), out=code)
    has_no_code = magnitude > word(((1 << (width - 1 - stored)) - 1) << stored)  # NaN
    if fmt.signed:
        sign = (bits >> word(width - fmt.bits)) & word(fmt.sign_bit)
    else:
        sign = word(0)
        has_no_code |= (bits > magnitude) | (magnitude == 0)  # negative, or zero
    if has_no_code.any():
        code[has_no_code] = fmt.nan_code
    return code | sign


def round_to(x: np.ndarray, fmt: FloatFormat, *, overflow: str = SATURATE) -> np.ndarray:
    """The nearest value that the format can say, in the dtype of `x`: encode, then decode."""
    return decode(encode(x, fmt, overflow=overflow), fmt).astype(np.asarray(x).dtype, copy=False)


def power_of_two_ceiling(x: np.ndarray) -> np.ndarray:
    """2^ceil(log2 x) for positive `x`, from the exponent itself: no logarithm that could round the wrong way."""
    mantissa, exponent = np.frexp(x)  # x = mantissa * 2^exponent, 1/2 <= mantissa < 1
    return np.ldexp(np.ones_like(mantissa), exponent - (mantissa == 0.5))


def measure_speed(seconds: float = 1.0) -> float:
    """Elements per second that `encode` turns from float32 to E4M3, best of several runs of a million."""
    x = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    best, stop = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        encode(x, E4M3)
        best = min(best, time.perf_counter() - start)
    return x.size / best


def main() -> None:
    """Print the formats, one number on its way through the bits, and what the two policies do."""
    print(f"{'format':8} {'bits':>4} {'bias':>5} {'largest':>12} {'smallest normal':>16} {'smallest':>12}")
    for fmt in FORMATS:
        row = f"{fmt.name:8} {fmt.bits:4} {fmt.bias:5} {fmt.largest:12.6g}"
        print(f"{row} {fmt.smallest_normal:16.6g} {fmt.smallest:12.6g}")
    x = np.array([0.3, 0.1, 1 / 3, 17, 19, 0.0005, 2.0**-10, 0.00098, 449])
    print("\n0.3 = 1.2 * 2^-2: exponent field -2 + 7 = 5, mantissa 0.2 * 8 = 1.6, to nearest 2: code 0 0101 010 = 0x2a")
    for value, code in zip(x, encode(x, E4M3)):
        print(f"  {value:<10.6g} -> {code:08b} -> {decode(code, E4M3):.10g}")
    beyond = np.array([448, 464, 465, np.inf])
    print(f"\nbeyond 448:   {beyond}")
    for policy in (SATURATE, OVERFLOW_TO_NAN):
        print(f"  {policy:9}   {decode(encode(beyond, E4M3, overflow=policy), E4M3)}")


if __name__ == "__main__":
    if "--speed" in sys.argv:
        print(f"encode float32 -> E4M3: {measure_speed() / 1e6:.0f} million elements/s")
    else:
        main()
