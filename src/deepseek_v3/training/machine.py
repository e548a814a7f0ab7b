"""What this machine can do: its matrix-product rate, and which number format multiplies faster."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.sizing import count_parameters, training_flops

BF16_GAIN = 1.5  # below this, conversions eat what faster products win
SMALL = 128  # rows and columns of a product that no machine takes long for


def measure_peak(dtype: torch.dtype, seconds: float = 0.15, size: int = 1024) -> float:
    """Return the FLOP per second of a square matrix product, the best of short runs.

    Without instructions for bf16 PyTorch makes a hundredth of its FP32 rate. A product of full size would take seconds
    there, and a small one is measured.
    """
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    if size > SMALL and (rate := measure_peak(dtype, 0.0, SMALL)) * seconds < 2 * size**3:
        return rate
    best, end = 0.0, time.perf_counter() + seconds
    torch.mm(a, b)
    while True:
        start = time.perf_counter()
        torch.mm(a, b)
        now = time.perf_counter()
        best = max(best, 2 * size**3 / (now - start))
        if now > end:
            return best


def choose_precision(wish: str) -> tuple[str, float, str]:
    """Return the precision to use (fp32 or bf16), its peak in FLOP/s, and why."""
    fp32, bf16 = measure_peak(torch.float32), measure_peak(torch.bfloat16)
    if wish != "auto":  # without instructions for bf16 our kernels multiply it in FP32
        return wish, max(fp32, bf16) if wish == "bf16" else fp32, "as asked"
    if bf16 >= BF16_GAIN * fp32:
        return "bf16", bf16, f"bf16 products are {bf16 / fp32:.1f}x as fast as fp32 here"
    return "fp32", fp32, f"bf16 products are only {bf16 / fp32:.1f}x as fast as fp32 here"


def autocast_for(precision: str) -> Callable[[], AbstractContextManager]:
    """Return what a forward pass is wrapped in: bf16 products over fp32 weights, or nothing."""
    if precision == "bf16":
        return partial(torch.autocast, "cpu", torch.bfloat16)
    return nullcontext


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs that one token of training needs, MTP modules and their use of the head included."""
    extra = count_parameters(config).active_mtp
    head = config.num_nextn_predict_layers * config.vocab_size * config.hidden_size
    return training_flops(config, seq_len) + 6.0 * (extra + head)
