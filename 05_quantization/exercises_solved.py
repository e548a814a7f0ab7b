"""The answers to exercises.py, by the chapter's own functions where they fit. Try yours first."""

import accumulation_precision
import fine_grained_quantization
import float_formats
import numpy as np


def decode_e4m3(code: int) -> float:
    """Look it up in the chapter's table."""
    return float(float_formats.decode(np.array(code), float_formats.E4M3))


def round_half_to_even(significand: int, dropped: int) -> int:
    """Just under half, and one more when the bit that stays last is odd."""
    odd = (significand >> dropped) & 1
    return (significand + (1 << (dropped - 1)) - 1 + odd) >> dropped


def scale_tile(tile: np.ndarray, power_of_two: bool) -> float:
    """The largest over 448, in float64."""
    scale = max(np.abs(tile).max(), 1e-4) / 448
    return float(float_formats.power_of_two_ceiling(np.array(scale))) if power_of_two else float(scale)


def multiply_tiles(a_NK: np.ndarray, scale_a_Nt: np.ndarray, b_FK: np.ndarray, scale_b_Ft: np.ndarray, tile: int):
    """Read both matrices back, with the chapter's `spread`, and multiply: the same sum in another order."""
    a = a_NK * fine_grained_quantization.spread(scale_a_Nt, (1, tile), a_NK.shape)
    b = b_FK * fine_grained_quantization.spread(scale_b_Ft, (tile, tile), b_FK.shape)
    return a @ b.T


def add_on_tensor_core(total: float, products: np.ndarray, kept_bits: int) -> float:
    """The chapter's model, for one output."""
    column = np.array(products, np.float32)[:, None]
    return float(accumulation_precision.add_group(np.array([total], np.float32), column, kept_bits)[0])
