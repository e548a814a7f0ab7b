"""What this machine can do: its matrix-product rate, and which number format multiplies faster."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.sizing import count_parameters, training_flops

BF16_GAIN = 1.5  # below this, conversions eat what faster products win
SMALL = 128  # rows and columns of a product that takes no machine long


def measure_peak(dtype: torch.dtype, device: str = "cpu", seconds: float = 0.15, size: int = 1024) -> float:
    """Return the FLOP per second of a square matrix product, the best of short runs."""
    size = size if device == "cpu" else 8 * size
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    best, end = 0.0, time.perf_counter() + seconds
    torch.mm(a, b)
    while True:
        wait()
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        now = time.perf_counter()
        best = max(best, 2 * size**3 / (now - start))
        if now > end:
            return best


def choose_precision(wish: str, device: str = "cpu") -> tuple[str, float, str]:
    """Return the precision to use (fp32, bf16, or fp8 if asked), its peak in FLOP/s, and why.

    The rate of FP8 is that of BF16, by whose units a CPU multiplies codes.
    """
    fp32 = measure_peak(torch.float32, device)
    if wish == "fp32":
        return wish, fp32, "as asked"
    bf16 = measure_peak(torch.bfloat16, device, size=SMALL if device == "cpu" else 1024)
    if bf16 > fp32 / 20:  # without instructions for it, a hundredth, and a product of full size takes seconds
        bf16 = measure_peak(torch.bfloat16, device)
    if wish in ("bf16", "fp8"):  # without instructions for it our kernels multiply it in FP32
        return wish, max(fp32, bf16), "as asked"
    if bf16 >= BF16_GAIN * fp32:
        return "bf16", bf16, f"bf16 products are {bf16 / fp32:.1f}x as fast as fp32 here"
    return "fp32", fp32, f"bf16 products are only {bf16 / fp32:.1f}x as fast as fp32 here"


def autocast_for(precision: str, device: str = "cpu") -> Callable[[], AbstractContextManager]:
    """Return what a forward pass is wrapped in: bf16 products over fp32 weights, or nothing.

    Under fp8 whatever is no FP8 product is as under bf16.
    """
    if precision in ("bf16", "fp8"):
        return partial(torch.autocast, device, torch.bfloat16)
    return nullcontext


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs that one token of training needs, MTP modules and their use of the head included."""
    extra = count_parameters(config).active_mtp
    head = config.num_nextn_predict_layers * config.vocab_size * config.hidden_size
    return training_flops(config, seq_len) + 6.0 * (extra + head)
