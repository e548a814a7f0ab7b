"""One scale for a few numbers: tiles of 1 x 128 for activations, blocks of 128 x 128 for weights.

    scale  = max |x| over the tile / 448            the largest of the tile meets the largest of E4M3
    code   = encode(x / scale)                       8 bits each
    x      ~ decode(code) * scale                    the scale multiplies back (released as weight_scale_inv)

One outlier now costs its own tile only. In a product the scales of one K-tile come out of the inner sum:

    Y[m, n] = sum over K-tiles t of  scale_A[m, t] * scale_B[n // 128, t] * sum over k in t of A[m, k] * B[n, k]

Run:       python fine_grained_quantization.py
Notebook:  fine_grained_quantization.ipynb
Source:    arXiv:2412.19437, 3.3.2 and Fig. 7(a); the floor under max |x| and the zero padding: the released kernels.
Letters:   N tokens, D in-features, F out-features (NOTATION.md).
"""

from dataclasses import dataclass

import numpy as np
from float_formats import E4M3, FloatFormat, decode, encode, power_of_two_ceiling

TILE = 128
FLOOR = np.float32(1e-4)  # under max |x|: an all-zero tile then divides by 1e-4 / 448 and stays zero, not 0 / 0
GRADIENT_FLOOR = np.float32(2.0**-100)  # gradients are small: a floor of 1e-4 would push whole tiles below 2^-9


@dataclass(frozen=True)
class Quantized:
    """Codes, one scale for each tile, and what is needed to read them; ragged edges are tiles cut short."""

    codes: np.ndarray  # [rows, columns], uint8 or uint16
    scales: np.ndarray  # [ceil(rows / tile rows), ceil(columns / tile columns)], float32
    tile: tuple[int, int]
    fmt: FloatFormat


def spread(scales: np.ndarray, tile: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each scale over its tile, cut to `shape`."""
    return scales.repeat(tile[0], axis=0).repeat(tile[1], axis=1)[: shape[0], : shape[1]]


def largest_of_tiles(x: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """max |x| of each tile of a matrix, a short tile at the edge counting only what it has."""
    rows, columns = (range(0, size, step) for size, step in zip(x.shape, tile))
    return np.maximum.reduceat(np.maximum.reduceat(np.abs(x), rows, axis=0), columns, axis=1)


def scales_of(largest: np.ndarray, fmt: FloatFormat, floor: float, *, power_of_two: bool) -> np.ndarray:
    """The float32 scale of each tile: largest / 448, taken up to a power of two *before* anything is divided by it."""
    scales = np.maximum(largest, np.float32(floor)) / np.float32(fmt.largest)
    return power_of_two_ceiling(scales) if power_of_two else scales


def quantize(
    x: np.ndarray,
    tile: tuple[int, int],
    fmt: FloatFormat = E4M3,
    *,
    power_of_two: bool = False,
    floor: float = FLOOR,
) -> Quantized:
    """Quantize a matrix with one scale for each tile, in float32 as the kernels do.

    Args:
        x: a finite matrix; taken to float32 first.
        tile: rows and columns that share a scale; (1, 128) along the summed axis for activations.
        power_of_two: take the scales up to 2^n, so that scaling changes exponents and never a mantissa.
        floor: the least max |x| that a scale is made from.
    Raises:
        ValueError: `x` is not a matrix, is empty, is not finite, or a tile side is below 1.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"quantize takes a matrix with at least one element, got shape {x.shape}; reshape to [N, D]")
    if min(tile) < 1:
        raise ValueError(f"tile={tile} has a side below 1; V3 uses (1, 128) and (128, 128)")
    largest = largest_of_tiles(x, tile)
    if not np.isfinite(largest).all():
        raise ValueError("x holds an infinity or NaN: one such value would take its whole tile; find where it arose")
    scales = scales_of(largest, fmt, floor, power_of_two=power_of_two)
    scaled = x / spread(scales, tile, x.shape)
    return Quantized(encode(scaled, fmt), scales, tile, fmt)  # encode saturates: x / scale may round past 448


def quantize_tensor(x: np.ndarray, fmt: FloatFormat = E4M3, *, power_of_two: bool = False) -> Quantized:
    """One scale for the whole matrix: what most FP8 recipes did before."""
    return quantize(x, np.shape(x), fmt, power_of_two=power_of_two)


def quantize_activation(x_ND: np.ndarray, *, power_of_two: bool = False, floor: float = FLOOR) -> Quantized:
    """One scale for each token and 128 channels."""
    tile = (1, TILE)  # V3 Fig. 7
    return quantize(x_ND, tile, power_of_two=power_of_two, floor=floor)


def quantize_weight(weight_FD: np.ndarray, *, power_of_two: bool = False) -> Quantized:
    """One scale for each 128 out-features and 128 in-features."""
    block = (TILE, TILE)  # V3 Fig. 7
    return quantize(weight_FD, block, power_of_two=power_of_two)


def dequantize(q: Quantized) -> np.ndarray:
    """Read the values back, float32: each code's value times its scale, once."""
    values = decode(q.codes, q.fmt).astype(np.float32)
    return values * spread(q.scales, q.tile, q.codes.shape)


def multiply_quantized(a: Quantized, b: Quantized) -> np.ndarray:
    """a @ b.T with the sum inside each K-tile exact and the sum over K-tiles in FP32.

    Args:
        a: [N, D], tiles (1, t) or any height; b: [F, D], tiles of the same width t.
    Returns:
        y_NF: float32.
    Raises:
        ValueError: the summed axes differ, or their tiles do.
    """
    if a.codes.shape[1] != b.codes.shape[1] or a.tile[1] != b.tile[1]:
        raise ValueError(
            f"a {a.codes.shape} in tiles of {a.tile} and b {b.codes.shape} in tiles of {b.tile} must agree "
            "on the summed (last) axis, in length and in tile width"
        )
    a_values, b_values = decode(a.codes, a.fmt), decode(b.codes, b.fmt)  # float64: a K-tile of products sums exactly
    scale_a = a.scales.repeat(a.tile[0], axis=0)[: len(a.codes)]
    scale_b = b.scales.repeat(b.tile[0], axis=0)[: len(b.codes)]
    y_NF = np.zeros((len(a.codes), len(b.codes)), np.float32)
    for t, k in enumerate(range(0, a.codes.shape[1], a.tile[1])):
        inner = a_values[:, k : k + a.tile[1]] @ b_values[:, k : k + a.tile[1]].T
        y_NF += inner.astype(np.float32) * (scale_a[:, t, None] * scale_b[:, t])  # V3 Fig. 7
    return y_NF


def rounding_bound(x: np.ndarray, q: Quantized) -> np.ndarray:
    """How far `dequantize(q)` may lie from `x`, element by element.

    |error| <= max( |x| * 2^-(M+1),  scale * half the subnormal step )        plus what float32 division adds
    """
    step = q.fmt.smallest  # of the subnormals
    scale = spread(q.scales, q.tile, q.codes.shape).astype(np.float64)
    single = 2.0**-22  # cast to float32, division, multiplication: three roundings of 2^-24, and room
    return np.maximum(np.abs(x) * 2.0 ** -(q.fmt.mantissa_bits + 1), scale * step / 2) + np.abs(x) * single


def product_bound(a: np.ndarray, b: np.ndarray, a_q: Quantized, b_q: Quantized) -> np.ndarray:
    """How far `multiply_quantized(a_q, b_q)` may lie from the exact a @ b.T.

        |Y - A B^T| <= |A| dB^T + dA |B|^T + dA dB^T  +  (K-tiles + 3) 2^-24 (|A| + dA)(|B| + dB)^T

    with dA, dB the rounding bounds of the elements; the last term is the FP32 sum over K-tiles.
    """
    a_error, b_error = rounding_bound(a, a_q), rounding_bound(b, b_q)
    everything = (np.abs(a) + a_error) @ (np.abs(b) + b_error).T
    return everything * (1 + (a_q.scales.shape[1] + 3) * 2.0**-24) - np.abs(a) @ np.abs(b).T


def relative_rms(x: np.ndarray, approximation: np.ndarray) -> float:
    """The error's root mean square over that of `x`: 0 is exact, 1 is as bad as writing zeros."""
    error, size = np.linalg.norm(np.asarray(approximation, np.float64) - x), np.linalg.norm(x)
    return float(error / size) if size else 0.0


def main() -> None:
    """Print one tile by hand, what an outlier costs under three granularities, and a product against its bound."""
    tile = np.zeros((1, TILE), np.float32)
    tile[0, :4] = [0.001, 0.0025, -0.004, 0.3]
    print("one tile, its first four numbers:", tile[0, :4])
    for power_of_two in (False, True):
        q = quantize_activation(tile, power_of_two=power_of_two)
        print(f"  scale {q.scales[0, 0]:.6e}  in E4M3 {decode(q.codes[0, :4], E4M3)}  back {dequantize(q)[0, :4]}")

    rng = np.random.default_rng(0)
    x_ND, weight_FD = rng.standard_normal((64, 512)) * 0.1, rng.standard_normal((256, 512)) * 0.02
    x_ND[5, 300] = 1e5
    print("\na matrix of 0.1s with one 100,000 in it: relative error of everything but the row of the outlier")
    quiet = np.arange(64) != 5
    for name, shape in (("per tensor", x_ND.shape), ("128 x 128", (TILE, TILE)), ("1 x 128", (1, TILE))):
        back = dequantize(quantize(x_ND, shape))
        print(f"  {name:10} {relative_rms(x_ND[quiet], back[quiet]):8.4f}")

    a_q, b_q = quantize_activation(x_ND), quantize_weight(weight_FD)
    error = np.abs(multiply_quantized(a_q, b_q) - x_ND @ weight_FD.T)
    bound = product_bound(x_ND, weight_FD, a_q, b_q)
    print(f"\nproduct [64, 512] x [512, 256]: worst error over its bound {np.max(error / bound):.3f} (never above 1)")


if __name__ == "__main__":
    main()
