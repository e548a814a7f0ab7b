"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

from collections.abc import Callable

import numpy as np


def decode_e4m3(code: int) -> float:
    """Normal numbers have a leading 1 that costs no bit; for e = 0 there is none, and the exponent is that of e = 1."""
    e, m = code >> 3 & 15, code & 7
    if (e, m) == (15, 7):
        return float("nan")
    size = 2.0 ** (e - 7) * (1 + m / 8) if e else 2.0**-6 * m / 8
    return -size if code >> 7 else size


def round_half_to_even(significand: int, dropped: int) -> int:
    """Just under half, and one more when the bit that stays last is odd: exactly half then reaches the next one."""
    odd = (significand >> dropped) & 1
    return (significand + (1 << (dropped - 1)) - 1 + odd) >> dropped


def scale_tile(tile: np.ndarray, power_of_two: bool) -> float:
    """Up to a power of two, not down: below, the largest number would pass 448."""
    scale = max(float(np.abs(tile).max()), 1e-4) / 448
    if power_of_two:
        mantissa, exponent = np.frexp(scale)  # exactly 1/2: a power of two already
        scale = float(np.ldexp(1.0, int(exponent) - (mantissa == 0.5)))
    return scale


def multiply_tiles(a_NK: np.ndarray, scale_a_Nt: np.ndarray, b_FK: np.ndarray, scale_b_Ft: np.ndarray, tile: int):
    """Inside one tile of K both scales are constants: they wait outside the sum of codes."""
    y_NF = np.zeros((len(a_NK), len(b_FK)))
    for t, k in enumerate(range(0, a_NK.shape[1], tile)):
        scale_b_F = scale_b_Ft[np.arange(len(b_FK)) // tile, t]
        y_NF += (a_NK[:, k : k + tile] @ b_FK[:, k : k + tile].T) * scale_a_Nt[:, t, None] * scale_b_F
    return y_NF


def add_on_tensor_core(total: float, products: np.ndarray, kept_bits: int) -> float:
    """The sum so far is a term like the others: it takes part in the maximum, and it is cut."""
    terms = np.array([total, *products], dtype=float)
    _, exponent = np.frexp(np.abs(terms).max())  # the largest is below 2^exponent and not below half of it
    unit = 2.0 ** (int(exponent) - kept_bits)
    return float(np.trunc(terms / unit).sum() * unit)


def turn_tile(code_TC: np.ndarray, scale_T1: np.ndarray, round_e4m3: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Only codes and scales were kept, so read back first; the column's maximum is that of what was read back."""
    value_TC = code_TC * scale_T1
    scale_1C = np.abs(value_TC).max(axis=0, keepdims=True) / 448
    return round_e4m3(value_TC / scale_1C), scale_1C


def linear_backward(
    dy_NF: np.ndarray, x_ND: np.ndarray, weight_FD: np.ndarray, tiles: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Each operand in tiles along the axis that is summed: out-features for dx, tokens for dweight.

    The weight's blocks are square and serve as they are. dy is rounded twice from the original, x a second time from
    what was kept.
    """
    return tiles(dy_NF, 1, 128) @ weight_FD, tiles(dy_NF, 128, 1).T @ tiles(x_ND, 128, 1)


def kept_swiglu_backward(
    dy_ND: np.ndarray, x_ND: np.ndarray, gate_NF: np.ndarray, up_NF: np.ndarray, weights: dict, tiles: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make h again from what was kept: a few operations a number instead of a byte to store and fetch.

    silu(g) = g s has the slope s (1 + g (1 - s)); x was read by both matrices, so dx is a sum.
    """
    s_NF = 1 / (1 + np.exp(-gate_NF))
    dh_NF, ddown = linear_backward(dy_ND, gate_NF * s_NF * up_NF, weights["down_proj"], tiles)
    dx_gate, dgate = linear_backward(
        dh_NF * up_NF * s_NF * (1 + gate_NF * (1 - s_NF)), x_ND, weights["gate_proj"], tiles
    )
    dx_up, dup = linear_backward(dh_NF * gate_NF * s_NF, x_ND, weights["up_proj"], tiles)
    return dx_gate + dx_up, dgate, dup, ddown


def fp8_linear_from_an_empty_file(
    x_ND: np.ndarray, weight_FD: np.ndarray, dy_NF: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One function that rounds in tiles of any shape; then the three products with the tiles along their sums."""

    def in_tiles(a, rows, columns):
        back = np.zeros_like(a, dtype=float)
        for i in range(0, a.shape[0], rows):
            for j in range(0, a.shape[1], columns):
                tile = a[i : i + rows, j : j + columns]
                scale = np.abs(tile).max() / 448
                nearest = np.abs(tile[..., None] / scale - codes).argmin(axis=-1)
                back[i : i + rows, j : j + columns] = codes[nearest] * scale
        return back

    x, weight = in_tiles(x_ND, 1, 4), in_tiles(weight_FD, 4, 4)
    return x @ weight.T, in_tiles(dy_NF, 1, 4) @ weight, in_tiles(dy_NF, 4, 1).T @ in_tiles(x, 4, 1)
