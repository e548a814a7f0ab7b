"""A tensor core that keeps 14 bits, and the cure: promote the sum to FP32 every 128 elements.

The model of the H800's FP8 path. For each run of 32 products, and the sum so far:

    top    = 2^floor(log2 of the largest magnitude among the 32 products and the sum)
    unit   = top * 2^-13                       14 bits from the top one down to the unit
    sum    = unit * ( trunc(sum / unit) + trunc(product_1 / unit) + ... + trunc(product_32 / unit) )

The sum grows like sqrt(K), and the unit with it: ever more of each small product is cut off. Started afresh every
N_C = 128 elements, with the finished part added to an FP32 register, the sum stays small and so does the unit.

The error is measured as max |error| over the root mean square of the exact outputs. Element by element |error| /
|output| says nothing here: zero-mean data gives outputs as near to zero as you like.

The maximum also depends on how many outputs there are to be unlucky: at K = 4096 on Gaussian data it is 1.4 % over
128 x 128 outputs and 2.0 % over 1024 x 1024, against 0.08 % with promotion (`--paper`, half a minute).

Run:       python accumulation_precision.py         error against K      ... --speed     products/s      ... --paper
Notebook:  accumulation_precision.ipynb
Source:    arXiv:2412.19437, 3.3.2 "Increasing Accumulation Precision", Fig. 7(b), and 3.5.2. The report says "around 14
           bits" and that bits below are truncated; that the sum is aligned together with the products is our reading.
Letters:   M, N outputs (rows of a, rows of b), K the summed axis.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from float_formats import E4M3, round_to

GROUP = 32  # products that are aligned together
KEPT_BITS = 14
PROMOTE_EVERY = 128  # elements of K: 4 warp-group instructions of 32
TINY = np.float32(2.0**-100)  # stands in for the magnitude of an all-zero group
BAND = 2048  # outputs at a time: 32 products for each then fit the core's own cache


def floor_power_of_two(x: np.ndarray) -> np.ndarray:
    """2^floor(log2 x) of positive float32 numbers: keep the exponent field, clear the mantissa."""
    return (x.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)


def add_group(total: np.ndarray, products: np.ndarray, kept_bits: int) -> np.ndarray:
    """Add 32 products to the sum as the tensor core does; `products` [32, ...] is used up.

    Every step but the truncation is exact in float32: products of two E4M3 numbers have 8 bits, the unit is a power of
    two, and 33 integers below 2^14 add up to less than 2^24.
    """
    top = np.maximum(np.maximum(products.max(axis=0), -products.min(axis=0)), np.abs(total))
    unit = floor_power_of_two(np.maximum(top, TINY)) * np.float32(2.0 ** (1 - kept_bits))
    per_unit = np.float32(1) / unit
    products *= per_unit
    np.trunc(products, out=products)  # towards zero: the bits are cut, not rounded
    whole = products.sum(axis=0) + np.trunc(total * per_unit)
    return whole * unit


def _multiply_band(a: np.ndarray, b_columns: np.ndarray, kept_bits: int, promote_every: int) -> np.ndarray:
    """Some rows of the product; a [rows, K], b_columns [K, N] contiguous."""
    register = np.zeros((len(a), b_columns.shape[1]), np.float32)  # FP32, outside the tensor core
    total = np.zeros_like(register)
    products = np.empty((GROUP, *register.shape), np.float32)
    for k in range(0, a.shape[1], GROUP):
        chunk = products[: min(GROUP, a.shape[1] - k)]
        np.multiply(a.T[k : k + GROUP, :, None], b_columns[k : k + GROUP, None, :], out=chunk)
        total = add_group(total, chunk, kept_bits)
        if (k + GROUP) % promote_every == 0:
            register += total  # V3 Fig. 7
            total = np.zeros_like(total)
    return register + total


def multiply_on_tensor_core(
    a_MK: np.ndarray, b_NK: np.ndarray, *, kept_bits: int = KEPT_BITS, promote_every: int | None = None
) -> np.ndarray:
    """a @ b.T as the modelled tensor core would give it, float32.

    Args:
        a_MK, b_NK: values of E4M3 (see `round_to`); taken to float32, where their products are exact.
        kept_bits: of each aligned product, 2 to 18.
        promote_every: elements of K between two promotions to FP32, a multiple of 32; None for never.
    Raises:
        ValueError: shapes that do not multiply, or a setting that the model does not cover.
    """
    if a_MK.ndim != 2 or b_NK.ndim != 2 or a_MK.shape[1] != b_NK.shape[1]:
        raise ValueError(f"a {a_MK.shape} and b {b_NK.shape} must be [M, K] and [N, K] with one K")
    if not 2 <= kept_bits <= 18:
        raise ValueError(f"kept_bits={kept_bits} is outside 2..18, where 33 aligned terms still add exactly in float32")
    if promote_every is not None and (promote_every < GROUP or promote_every % GROUP):
        raise ValueError(f"promote_every={promote_every} must be a multiple of {GROUP}; V3 uses {PROMOTE_EVERY}")
    a, b = np.asarray(a_MK, np.float32), np.asarray(b_NK, np.float32)
    b_columns = np.ascontiguousarray(b.T)
    rows = max(1, BAND // max(1, len(b)))
    bands = [a[m : m + rows] for m in range(0, len(a), rows)]
    never = a.shape[1] + GROUP + 1  # larger than any k + GROUP
    with ThreadPoolExecutor(max_workers=2) as pool:  # NumPy lets go of the interpreter inside its loops
        parts = list(pool.map(lambda band: _multiply_band(band, b_columns, kept_bits, promote_every or never), bands))
    return np.concatenate(parts) if parts else np.zeros((0, len(b)), np.float32)


def accumulation_error(a_MK: np.ndarray, b_NK: np.ndarray, **settings) -> tuple[float, float]:
    """(max |error|, rms of the error), both over the rms of the exact outputs."""
    exact = np.asarray(a_MK, np.float64) @ np.asarray(b_NK, np.float64).T
    error = multiply_on_tensor_core(a_MK, b_NK, **settings) - exact
    size = np.sqrt(np.mean(exact**2))
    return float(np.abs(error).max() / size), float(np.sqrt(np.mean(error**2)) / size)


def gaussian_operands(n_outputs: int, n_terms: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two [n_outputs, n_terms] matrices of E4M3 values drawn from a normal distribution."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n_outputs, n_terms)).astype(np.float32)
    return round_to(a, E4M3), round_to(b, E4M3)


def measure_speed(seconds: float = 2.0) -> float:
    """Products per second, best of several products of [256, 1024] x [1024, 256]."""
    a, b = gaussian_operands(256, 1024)
    best, stop = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        multiply_on_tensor_core(a, b, promote_every=PROMOTE_EVERY)
        best = min(best, time.perf_counter() - start)
    return 256 * 1024 * 256 / best


def main() -> None:
    """Print a group that fits on paper, then the error against K with and without promotion."""
    products = np.array([[100.0], [0.3], [-0.02]], np.float32)
    print("three products 100, 0.3, -0.02 and 6 bits: top 64, unit 2, so 100 + 0 + 0 =", end=" ")
    print(add_group(np.zeros(1, np.float32), products, 6)[0], "(exact: 100.28)")
    print(f"\nGaussian data, 128 x 128 outputs, {KEPT_BITS} bits kept; error over the rms of the exact outputs, in %")
    print(f"{'K':>6} {'max, no promotion':>18} {'max, every 128':>16} {'rms, no promotion':>18} {'rms, every 128':>16}")
    a, b = gaussian_operands(128, 4096)
    for n_terms in (128, 512, 2048, 4096):
        plain = accumulation_error(a[:, :n_terms], b[:, :n_terms])
        cured = accumulation_error(a[:, :n_terms], b[:, :n_terms], promote_every=PROMOTE_EVERY)
        print(f"{n_terms:6} {plain[0]:18.3%} {cured[0]:16.3%} {plain[1]:18.3%} {cured[1]:16.3%}")


if __name__ == "__main__":
    if "--speed" in sys.argv:
        print(f"accumulator model: {measure_speed() / 1e6:.0f} million products/s on two threads")
    elif "--paper" in sys.argv:
        a, b = gaussian_operands(1024, 4096)
        for every in (None, PROMOTE_EVERY):
            largest, rms = accumulation_error(a, b, promote_every=every)
            print(
                f"K = 4096, 1024 x 1024 outputs, promotion every {every}: max {largest:.2%}, rms {rms:.3%} of the rms"
            )
    else:
        main()
