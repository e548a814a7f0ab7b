"""E4M3 codes with block scales to BF16 or FP32: a kernel where the machine has a compiler, PyTorch elsewhere.

    weight = float32(code) * scale, rounded once to the output's dtype

Both give the same bits. `python -m deepseek_v3.fp8.decode` measures them beside a plain copy.

Letters: O rows (out), I columns (in).
"""

import torch
from torch import Tensor

from deepseek_v3.fp8.quantize import BLOCK, count_blocks, find_nan_code, quantize_weight, spread_scales
from deepseek_v3.native.build import have_kernels, run_kernel

KERNELS = {torch.bfloat16: "decode_e4m3_bf16", torch.float32: "decode_e4m3_fp32"}


def dequantize_weight(code_OI: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Undo `quantize_weight`: float32(code) * scale, rounded once to `dtype`.

    Raises:
        ValueError: the scales do not cover the matrix.
    """
    out_OI = torch.empty(code_OI.shape, dtype=dtype, device=code_OI.device)
    dequantize_into(code_OI, scale, out_OI)
    return out_OI


def dequantize_into(code_OI: Tensor, scale: Tensor, out_OI: Tensor) -> bool:
    """`dequantize_weight` into memory that is there already (rows of a larger tensor, say).

    Returns:
        whether every code is a number (0x7F and 0xFF are not, and become NaN).
    """
    check_scale_shape(code_OI, scale)
    return decode_blocks(code_OI, scale, out_OI)


def check_scale_shape(code_OI: Tensor, scale: Tensor) -> None:
    """Refuse scales that do not cover the matrix."""
    rows, columns = code_OI.shape
    needed = (count_blocks(rows), count_blocks(columns))
    if tuple(scale.shape) != needed:
        raise ValueError(f"scales of shape {tuple(scale.shape)} do not cover {rows} x {columns}; needed: {needed}")


def decode_blocks(code_OI: Tensor, scale: Tensor, out_OI: Tensor) -> bool:
    """Fill `out_OI` with float32(code) * scale and say whether every code is a number; shapes were checked before."""
    kernel = KERNELS.get(out_OI.dtype)
    plain = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in (code_OI, out_OI))
    if not (kernel and plain and have_kernels()):
        return decode_by_pytorch(code_OI, scale, out_OI)
    nan = torch.empty(1, dtype=torch.int64)
    run_kernel(kernel, code_OI, scale.float().contiguous(), out_OI, *code_OI.shape, nan)
    return not nan.item()


def decode_by_pytorch(code_OI: Tensor, scale: Tensor, out_OI: Tensor) -> bool:
    """The same on any device, strip by strip of 128 rows."""
    for i, scale_row in enumerate(scale.float()):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        out_OI[rows] = code_OI[rows].float() * spread_scales(scale_row, code_OI.shape[1])
    return find_nan_code(code_OI) is None


def main(rows: int = 4096, columns: int = 7168, repeats: int = 20) -> None:
    """Print the rates of decoding to BF16 beside that of copying BF16, in bytes read and written."""
    import time

    code, scale = quantize_weight(torch.randn(rows, columns))
    source, target = torch.ones(2, rows, columns, dtype=torch.bfloat16).unbind()
    out = torch.empty_like(target)
    ways = {
        "copy": (4, lambda: target.copy_(source)),
        "decode": (3, lambda: decode_blocks(code, scale, out)),
        "PyTorch": (3, lambda: decode_by_pytorch(code, scale, out)),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):  # in turns: a busy machine is busy for all
        for name, (_, way) in ways.items():
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    rate = {name: n_bytes * rows * columns / best[name] / 1e9 for name, (n_bytes, _) in ways.items()}
    print("  ".join(f"{name} {r:.2f} GB/s ({r / rate['copy']:.2f} of copy)" for name, r in rate.items()))


if __name__ == "__main__":
    main()
