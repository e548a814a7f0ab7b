"""Exercises of chapter 05: write the bodies, then run `make check CH=05`.

Work with pencil and paper first; every function here is short. The hints get more concrete from 1 to 3.
"""

import numpy as np


def decode_e4m3(code: int) -> float:
    """Say which number one E4M3 code stands for, from its bits.

        sign 1 bit, exponent field e 4 bits, mantissa field m 3 bits, bias 7
        e > 0:  (-1)^sign * 2^(e - 7) * (1 + m / 8)            e = 0:  (-1)^sign * 2^-6 * m / 8

    Args:
        code: 0 to 255.
    Returns:
        the value; NaN for the two codes whose other seven bits are all one.

    Source: arXiv:2209.05433, Table 1.
    Hint 1: `code >> 3 & 15` is the exponent field.
    Hint 2: there is no infinity: e = 15 is a normal exponent, except for one code of each sign.
    Hint 3: the largest value is code 0x7E, 2^8 * 1.75 = 448.
    """
    raise NotImplementedError


def round_half_to_even(significand: int, dropped: int) -> int:
    """Drop the last bits of an integer and round to nearest, ties to even, with integer arithmetic only.

        result = floor( (significand + 2^(dropped-1) - 1 + odd) / 2^dropped )

    Args:
        significand: zero or more.
        dropped: number of bits to drop, at least 1.

    Hint 1: try 0b1010 and 0b1110 with dropped = 2: 2.5 goes to 2, 3.5 goes to 4.
    Hint 2: `odd` is the last bit that stays: (significand >> dropped) & 1.
    Hint 3: no float, no round(): two shifts and one sum.
    """
    raise NotImplementedError


def scale_tile(tile: np.ndarray, power_of_two: bool) -> float:
    """Choose the scale of one activation tile.

        s = max(max |x|, 1e-4) / 448, taken up to a power of two if asked for

    Args:
        tile: the numbers that share the scale; may be all zero.
        power_of_two: whether s must be 2^n, the smallest that is not below.

    Source: arXiv:2412.19437, 3.3.2; the floor of 1e-4: the released kernels.
    Hint 1: the floor is there so that an all-zero tile is divided by something.
    Hint 2: up, not to the nearest: the largest element must stay at or below 448.
    Hint 3: np.frexp(s) gives (mantissa, exponent) with 1/2 <= mantissa < 1; exactly 1/2 means s is a power already.
    """
    raise NotImplementedError


def multiply_tiles(a_NK: np.ndarray, scale_a_Nt: np.ndarray, b_FK: np.ndarray, scale_b_Ft: np.ndarray, tile: int):
    """Multiply two matrices of code values whose scales belong to tiles along K.

        Y[n, f] = sum over tiles t of  scale_a[n, t] * scale_b[f // tile, t] * sum over k in t of a[n, k] * b[f, k]

    Args:
        a_NK: activations' code values, one scale for each row and `tile` columns: scale_a_Nt [N, ceil(K / tile)].
        b_FK: weights' code values in square blocks: scale_b_Ft [ceil(F / tile), ceil(K / tile)].
    Returns:
        [N, F], float64.

    Source: arXiv:2412.19437, 3.3.2 and Fig. 7.
    Hint 1: loop over the tiles of K; inside one tile both scales are constants.
    Hint 2: the row of scale_b for output f is f // tile: repeat each row `tile` times and cut to F.
    Hint 3: the last tile of K, and the last block of F, may be short.
    """
    raise NotImplementedError


def add_on_tensor_core(total: float, products: np.ndarray, kept_bits: int) -> float:
    """Add a group of products to a sum as a tensor core with `kept_bits` bits does.

        top  = 2^floor(log2 of the largest magnitude among the sum and the products)
        unit = top * 2^(1 - kept_bits);   every term is cut to a multiple of unit, towards zero, then all are added

    Args:
        total: the sum so far.
        products: some 32 numbers, at least one of them or the sum not zero.

    Source: arXiv:2412.19437, 3.3.2 "Increasing Accumulation Precision" (our reading: the sum is aligned too).
    Hint 1: the sum so far takes part in the maximum and is cut as well.
    Hint 2: cut towards zero is np.trunc, not np.floor and not np.round.
    Hint 3: with 6 bits, 100 + 0.3 has top 64 and unit 2, and is 100.
    """
    raise NotImplementedError
