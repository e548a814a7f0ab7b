"""Build FP8 from its bits to a linear layer, forward and backward, and have every step graded.

    make check CH=05            (or: python -m utils.exercises 05, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

from collections.abc import Callable

import numpy as np


def decode_e4m3(code: int) -> float:
    """Say which number one E4M3 code (0 to 255) stands for, from its bits.

    Sign 1 bit, exponent field 4 bits, mantissa field 3 bits, bias 7. NaN for the two codes whose other seven bits are
    all one.
    Notebook: float_formats; arXiv:2209.05433, Table 1.
    """
    raise NotImplementedError


def round_half_to_even(significand: int, dropped: int) -> int:
    """Drop the last bits of an integer and round to nearest, ties to even, with integer arithmetic only.

    Args: significand is zero or more, dropped at least 1.
    Notebook: float_formats.
    """
    raise NotImplementedError


def scale_tile(tile: np.ndarray, power_of_two: bool) -> float:
    """Choose the scale of one activation tile, so that its largest magnitude meets 448.

    Args:
        tile: the numbers that share the scale; may be all zero, so take at least 1e-4 for its largest magnitude.
        power_of_two: whether the scale must be 2^n, the smallest that is not below.
    Notebook: fine_grained_quantization; arXiv:2412.19437, 3.3.2; the floor: the released kernels.
    """
    raise NotImplementedError


def multiply_tiles(a_NK: np.ndarray, scale_a_Nt: np.ndarray, b_FK: np.ndarray, scale_b_Ft: np.ndarray, tile: int):
    """Multiply two matrices of code values whose scales belong to tiles along K: a b^T.

    Args:
        a_NK: activations' code values, one scale for each row and `tile` columns: scale_a_Nt [N, ceil(K / tile)].
        b_FK: weights' code values in square blocks: scale_b_Ft [ceil(F / tile), ceil(K / tile)].
    Returns: [N, F], float64.
    Notebook: fine_grained_quantization; arXiv:2412.19437, 3.3.2 and Fig. 7.
    """
    raise NotImplementedError


def add_on_tensor_core(total: float, products: np.ndarray, kept_bits: int) -> float:
    """Add a group of products to a sum as a tensor core with `kept_bits` bits does.

    The largest magnitude among the sum and the products sets the unit; every term is cut to a multiple of it, towards
    zero; then all are added.
    Notebook: accumulation_precision; arXiv:2412.19437, 3.3.2 "Increasing Accumulation Precision".
    """
    raise NotImplementedError


def turn_tile(code_TC: np.ndarray, scale_T1: np.ndarray, round_e4m3: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Turn a square of code values with one scale a row into one with one scale a column.

    Args:
        code_TC: what the codes say. scale_T1: a scale for each row.
        round_e4m3: rounds an array to the nearest numbers of E4M3; they end at 448.
    Returns: what the new codes say [T, C], and their scales [1, C]. No column is all zero.
    Notebook: online_quantization; arXiv:2412.19437, 3.3.3.
    """
    raise NotImplementedError


def linear_backward(
    dy_NF: np.ndarray, x_ND: np.ndarray, weight_FD: np.ndarray, tiles: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Return dx and dweight of y = x weight^T with operands in FP8.

    Args:
        x_ND, weight_FD: as they were read back in the forward pass; the weight in blocks of 128 x 128, x in 1 x 128.
        tiles: (array, rows, columns) -> the array after E4M3 with one scale for each rows x columns.
    Returns: dx [N, D], dweight [F, D]; sums exact, nothing else is rounded.
    Notebook: mixed_precision; arXiv:2412.19437, 3.3.1 and Fig. 6.
    """
    raise NotImplementedError


def kept_swiglu_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, gate_NF: np.ndarray, up_NF: np.ndarray, weights: dict, tiles: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Go back through down_proj (silu(g) * u), g = gate_proj x, u = up_proj x, with only g and u kept of the middle.

    Every one of the three linear layers goes back by linear_backward, with operands in FP8. The middle itself,
    h = silu(g) * u, was not kept.

    Args: x, g, u as they are read back; weights "gate_proj", "up_proj" [F, D], "down_proj" [D, F] likewise.
    Returns: dx [N, D], dgate_proj, dup_proj, ddown_proj.
    Notebook: mixed_precision; arXiv:2412.19437, 3.3.3 "Low-Precision Activation".
    """
    raise NotImplementedError


def fp8_linear_from_an_empty_file(
    x_ND: np.ndarray, weight_FD: np.ndarray, dy_NF: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a linear layer forward and backward in FP8, from nothing but NumPy and the list of E4M3's numbers.

    Tiles are 1 x 4 where V3's are 1 x 128, blocks 4 x 4, tall tiles 4 x 1; edges may be short. Scales are largest
    magnitude / 448 (no power of two, and no floor is needed: no tile is all zero). Every rounding is to the nearest
    number of the list; take either one at a tie. Sums exact.

    Args: codes [253], all numbers of E4M3 in order, from -448 to 448.
    Returns: y [N, F], dx [N, D], dweight [F, D].
    Source: arXiv:2412.19437, 3.3.1, 3.3.2, Fig. 6 and 7.
    """
    raise NotImplementedError
