"""What this machine can do: its matrix-product rate and its memory bandwidth, measured in the same run as the rest."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleave(functions: dict[str, Callable[[], object]], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Time the functions in turn, `rounds` times each, so that a busy moment of the machine meets all of them."""
    for function in functions.values():
        for _ in range(warm):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def median_ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of slow / fast: how many times faster `fast` is."""
    return statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True))


def matmul_rate(dtype: torch.dtype, size: int = 2048, rounds: int = 7) -> float:
    """FLOP/s of a square matrix product with the threads in use: the best of a few, since it stands for a peak."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    best = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(rounds))
    return 2 * size**3 / best


def has_fast_bf16() -> bool:
    """Whether PyTorch multiplies bf16 at a tenth of its FP32 rate or more; without instructions for it, a hundredth."""
    return matmul_rate(torch.bfloat16, 512, 2) > 0.1 * matmul_rate(torch.float32, 512, 2)


def product_rates(bf16: bool) -> dict[str, float]:
    """The matrix-product rate of each format; where `bf16` is not fast, its products take the units of FP32."""
    fp32 = matmul_rate(torch.float32)
    return {"fp32": fp32, "bf16": matmul_rate(torch.bfloat16) if bf16 else fp32}


def read_bandwidth(megabytes: int = 512, rounds: int = 7) -> float:
    """Bytes/s at which all threads together read a large array once (a matrix-vector product in FP32)."""
    rows = megabytes * 2**20 // (4 * 4096)
    matrix, vector = torch.randn(rows, 4096), torch.randn(4096)
    best = min(seconds(lambda: torch.mv(matrix, vector)) for _ in range(rounds))
    return matrix.nbytes / best
