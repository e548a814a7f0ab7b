"""FP8 kernels on a GPU: TFLOP/s and TB/s beside scaled_mm, cuBLAS in BF16 and a copy: python -m benchmarks.fp8_gpu

Every contender in turns on the same random numbers (zeros need less power and read too fast), medians over rounds.
Writes benchmarks/results/fp8_DEVICE.json: device, versions, command, figures. Without a GPU it says so and writes
nothing. Which shapes: those that the projects which publish figures take (7168 wide, tokens by thousands).

Letters: M, N, K of a product, N tokens, D width.
"""

import json
import platform
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.asking import read_values
from benchmarks.machine import interleave
from deepseek_v3.fp8.forms import SCALED_MM, TRITON, why_no_form
from deepseek_v3.fp8.products import multiply_sorted, multiply_tiles
from deepseek_v3.fp8.tiles import COLUMNS, SQUARES, quantize, quantize_both

RESULTS = Path(__file__).parent / "results"
QUANTIZED = (8192, 7168)
PRODUCTS = ((4096, 7168, 16384), (4096, 4096, 7168), (4096, 24576, 1536), (64, 4096, 7168))
WEIGHT_GRADIENTS = ((7168, 2048, 8192), (4096, 7168, 8192))
EXPERTS = (8, 4096, 4096, 7168)  # experts, rows of each, N, K
DECODING = ((16, 64, 4096), (128, 64, 4096))  # heads, rows, latents of each
REPEAT = 10  # calls between two waits: what one costs to begin does not count
Calls = dict[str, Callable[[], Any]]


def time_calls(calls: Calls, rounds: int) -> dict[str, float]:
    """Seconds of each, the median of rounds in turns."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)

    def waited(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(REPEAT):
                call()
            wait()

        return run

    times = interleave({name: waited(call) for name, call in calls.items()}, rounds)
    return {name: statistics.median(each) / REPEAT for name, each in times.items()}


def forms_of(device: str, make: Callable[[str], Callable[[], Any]]) -> Calls:
    """A call for each form that serves."""
    return {form: make(form) for form in (TRITON, SCALED_MM) if why_no_form(form, device) is None}


def draw(device: str, *shape: int) -> torch.Tensor:
    """Random BF16 numbers."""
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def quantizers(device: str, shape: tuple[int, int], rounds: int) -> dict[str, float]:
    """TB/s of both quantizers and of a copy, bytes read and written."""
    x, (rows, columns) = draw(device, *shape), shape
    room, numbers = torch.empty_like(x), rows * columns
    calls = {"copy": lambda: room.copy_(x), "rows": lambda: quantize(x), "both": lambda: quantize_both(x)}
    moved = {"copy": 4 * numbers, "rows": (3 + 4 / 128) * numbers, "both": (4 + 8 / 128) * numbers}
    return {name: moved[name] / took / 1e12 for name, took in time_calls(calls, rounds).items()}


def product(device: str, m: int, n: int, k: int, rounds: int, *, weight_gradient: bool = False) -> dict[str, float]:
    """TFLOP/s of one product; BF16 in, BF16 out (FP32 for the gradient of a weight), quantizers not counted."""
    x, w, dtype = draw(device, m, k), draw(device, n, k), torch.bfloat16
    a, b = quantize(x), quantize(w, SQUARES)
    if weight_gradient:
        a, b = (quantize(t.T.contiguous(), COLUMNS).transposed() for t in (x, w))
        a, b = (q._replace(code=q.code.contiguous()) for q in (a, b))
        dtype = torch.float32
    calls: Calls = {"cuBLAS BF16": lambda: x @ w.T}
    calls |= forms_of(device, lambda form: lambda: multiply_tiles(a, b, dtype, form=form))
    return {name: 2 * m * n * k / took / 1e12 for name, took in time_calls(calls, rounds).items()}


def experts(device: str, sizes: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """TFLOP/s of products of sorted experts."""
    count, rows, n, k = sizes
    x, w = draw(device, count * rows, k), draw(device, count, n, k)
    a, b, out = quantize(x), quantize(w, SQUARES), torch.empty(count * rows, n, dtype=x.dtype, device=device)
    calls: Calls = {"cuBLAS BF16, one by one": lambda: torch.bmm(x.view(count, rows, k), w.mT)}
    calls |= forms_of(device, lambda form: lambda: multiply_sorted(a, b, [rows] * count, out, form=form))
    return {name: 2 * count * rows * n * k / took / 1e12 for name, took in time_calls(calls, rounds).items()}


def decoding(device: str, heads: int, rows: int, length: int, rounds: int) -> dict[str, float]:
    """TB/s and TFLOP/s of attention of a decoding step over the block table, at V3's widths."""
    if why_no_form(TRITON, device) is not None:
        return {}
    from deepseek_v3.kernels import launch

    latent, rotary, size = 512, 64, 64
    blocks = rows * (length // size)
    cache, query = draw(device, blocks, size, latent + rotary), draw(device, rows, heads, latent + rotary)
    tables = torch.randperm(blocks, device=device).view(rows, -1)
    lengths = torch.full((rows,), length, device=device)
    took = time_calls({"": lambda: launch.attend_latents(query, cache, tables, lengths, latent, 0.1)}, rounds)[""]
    work = 2 * rows * heads * length * (2 * latent + rotary)
    return {"TB/s": 2 * cache.numel() / took / 1e12, "TFLOP/s": work / took / 1e12}


def measure(device: str, rounds: int = 20) -> dict[str, dict[str, float]]:
    """All figures by what was measured."""
    shape = " x ".join(map(str, QUANTIZED))
    found = {f"quantizers, {shape}, TB/s": quantizers(device, QUANTIZED, rounds)}
    for m, n, k in PRODUCTS:
        found[f"forward or input gradient, {m} x {n} x {k}, TFLOP/s"] = product(device, m, n, k, rounds)
    for m, n, k in WEIGHT_GRADIENTS:
        name = f"weight gradient, {m} x {n} x {k}, TFLOP/s"
        found[name] = product(device, m, n, k, rounds, weight_gradient=True)
    found[f"experts, {' x '.join(map(str, EXPERTS))}, TFLOP/s"] = experts(device, EXPERTS, rounds)
    for heads, rows, length in DECODING:
        found[f"decoding, {heads} heads, {rows} x {length} latents"] = decoding(device, heads, rows, length, rounds)
    return found


def write_results(folder: Path, device: str, found: dict[str, dict[str, float]]) -> Path:
    """Write them with what they were measured on; return the file."""
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__, "CUDA": torch.version.cuda}
    folder.mkdir(exist_ok=True)
    path = folder / f"fp8_{re.sub('[^A-Za-z0-9]+', '_', device)}.json"
    held = {"device": device, "command": "python -m benchmarks.fp8_gpu", **versions, "measured": found}
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Measure, print, write."""
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU: nothing is measured, nothing is claimed")
        return
    found = measure("cuda")
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{who} {figure:.2f}" for who, figure in figures.items()))
    print(write_results(RESULTS, torch.cuda.get_device_name(), found))


if __name__ == "__main__":
    read_values(__doc__)
    main()
