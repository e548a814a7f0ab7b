"""The kernel of products itself on chapter 05's tensor core, and the file that the chapter's notebook tells of it by.

    make kernel-errors        measure anew and write 05_quantization/kernel_errors.json (a minute on a quiet core)

`tl.dot` is the till of `accumulation_precision.py`, everything else is Triton's kernel in the interpreter. Its sums are
then those of `multiply_on_tensor_core` to the last bit, which `test_values.py` holds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accumulation_precision import add_group, gaussian_operands
from float_formats import E4M3, encode
from shim import dot_with, mend_interpreter

FILE = Path(__file__).parents[2] / "05_quantization" / "kernel_errors.json"
TERMS, OUTPUTS = 4096, (64, 256, 1024)  # K; rows and columns of the product


def hopper_dot(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What chapter 05 says a tensor core makes of a dot: 32 products at a time, 14 bits."""
    total = total.astype(np.float32)
    for k in range(0, a.shape[1], 32):
        products = a[:, k : k + 32].T[:, :, None] * b[k : k + 32, None, :]
        total = add_group(total, products.astype(np.float32), 14)
    return total


def run_kernel(launch: Any, a: np.ndarray, b: np.ndarray, *, promote: bool) -> np.ndarray:
    """The kernel's product of two matrices of E4M3 values on that core, all scales 1; FP32."""
    ones = torch.ones(len(a), -(-a.shape[1] // 128))
    codes = [torch.from_numpy(encode(x, E4M3)).view(torch.float8_e4m3fn) for x in (a, b)]
    with dot_with(hopper_dot):
        out = torch.empty(len(a), len(b))
        launch.multiply((codes[0], ones, 1), (codes[1], ones, 1), out, block=(64, 64), promote=promote)
    return out.numpy()


def measure_errors(launch: Any, outputs: int, operands: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """max |error| and rms of the error, over the rms of the exact outputs, without promotion and with."""
    a, b = (x[:outputs] for x in operands)
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    size, found = np.sqrt(np.mean(exact**2)), {}
    for name, promote in (("without", False), ("every 128", True)):
        error = run_kernel(launch, a, b, promote=promote) - exact
        found[f"largest, {name}"] = float(np.abs(error).max() / size)
        found[f"rms, {name}"] = float(np.sqrt(np.mean(error**2)) / size)
    return found


def measure_all(launch: Any, outputs: tuple[int, ...], say: Callable[[str], None] = print) -> dict[str, Any]:
    """The contents of the file, for these numbers of outputs."""
    operands = gaussian_operands(max(OUTPUTS), TERMS)
    rows = {}
    for n in outputs:
        rows[str(n)] = measure_errors(launch, n, operands)
        say(f"{n} x {n} outputs, K = {TERMS}: {rows[str(n)]}")
    kernel = "kernels/multiply.py in Triton 3.6.0's interpreter, on the tensor core of accumulation_precision.py"
    return {"what": kernel, "again by": "make kernel-errors", "K": TERMS, "outputs": rows}


if __name__ == "__main__":
    mend_interpreter()
    import deepseek_v3.kernels.launch as kernels

    FILE.write_text(json.dumps(measure_all(kernels, OUTPUTS), indent=1) + "\n", encoding="utf-8")
