"""Which form of an operation serves: the one place that decides, and every threshold.

    if kernel_serves(x_ND, weight_OD): ...          the C++ kernel; else PyTorch's operations
    why_no_kernel(x_ND, weight_OD)                  None, or what keeps the kernel from serving

Activations of the kernels are FP32 with FP32 weights, or BF16 with BF16 or FP32 weights (autocast: weights are rounded
on their way into a product, and their gradients come back in FP32). Weights may also be E4M3 codes with block scales,
which are decoded to the activations' dtype on their way; then they have no gradient. Every sum is in FP32.
"""

import torch
from torch import Tensor

from deepseek_v3.native.build import why_no_kernels

FEWEST_ROWS = 32  # of a kernel; below, packing the weights costs more than a product that reads them where they lie
ABSORB_UP_TO = 16  # new tokens per row; beyond, expanding the latent once costs less than wide scores
SERVES_UP_TO = 64  # new tokens of a row; a step's kernel is 1.7 times as fast as matrix kernels at 64 (`nano`)
SMALL_SLAB, LARGE_SLAB, SMALL_SLAB_UP_TO = 64, 128, 1024  # queries per slab of PyTorch's attention, by its keys

CODE = torch.float8_e4m3fn
KINDS = {
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.float32): 1,
    (torch.bfloat16, torch.bfloat16): 2,
    (torch.float32, CODE): 3,
    (torch.bfloat16, CODE): 4,
}  # (activations, weights) to the number by which the kernels know the pair


def kernel_serves(x: Tensor, *weights: Tensor) -> bool:
    """Whether kernels take these activations with these weights."""
    return why_no_kernel(x, *weights) is None


def why_no_kernel(x: Tensor, *weights: Tensor, device: str | None = None) -> str | None:
    """What keeps kernels from taking these; None where they serve.

    Args:
        x: activations, [..., width]; rows are all axes but the last.
        device: what to take for the device of `x`; by default the one it is on.
    """
    device = device or x.device.type
    if device != "cpu":
        return f"kernels run on a CPU, not on {device}"
    if torch.compiler.is_compiling():
        return "torch.compile traces PyTorch's operations"
    if x.numel() < FEWEST_ROWS * x.shape[-1]:
        return f"fewer than {FEWEST_ROWS} rows: packing the weights would cost more"
    dtype = activation_dtype(x, device)
    if dtype not in (torch.float32, torch.bfloat16):
        return f"kernels compute in FP32 and BF16, not in {dtype}"
    if (reason := why_no_kernels()) is not None:
        return reason
    return _why_not_these(x, dtype, weights)


def _why_not_these(x: Tensor, dtype: torch.dtype, weights: tuple[Tensor, ...]) -> str | None:
    if dtype == torch.bfloat16 and any(w.shape[-1] % 2 or w.shape[-2] % 2 for w in weights):
        return "in BF16 both sides of a weight must be even"
    if not all(weight_lies_well(x, w) for w in weights):
        return "a weight on another device, or not by rows"
    kinds = {w.dtype for w in weights}
    if CODE in kinds and len(kinds) > 1:
        return "weights in FP8 beside others"
    if CODE in kinds and torch.is_grad_enabled() and x.requires_grad:
        return "kernels have no gradient through weights in FP8"
    if not all((dtype, kind) in KINDS for kind in kinds):
        return f"activations in {dtype} with weights in {', '.join(sorted(map(str, kinds)))}"
    return None


def weight_lies_well(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight is where its rows are and lies by rows, as kernels read it."""
    return weight.device.type == x.device.type and weight.is_contiguous()


def refuse_fp8_gradient(kind: int) -> None:
    """Refuse FP8 codes, to which `kernel_serves` should have said no: read as numbers they end beyond their memory."""
    if kind >= KINDS[torch.float32, CODE]:
        raise RuntimeError("the kernels have no gradient for weights in FP8")


def activation_dtype(x: Tensor, device: str | None = None) -> torch.dtype:
    """The dtype a product of `x` is computed in: that of autocast, where it is on."""
    device = device or x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def absorbs(count: int) -> bool:
    """Whether attention to a cache takes its absorbed form for `count` new tokens a row."""
    return count <= ABSORB_UP_TO


def slab_height(keys: int) -> int:
    """Queries per slab: few keep the wasted half of the diagonal small, many keep the products large."""
    return SMALL_SLAB if keys <= SMALL_SLAB_UP_TO else LARGE_SLAB
