"""Which form computes the products of FP8 training on a device, and what keeps the others from it: the one place.

    C++ kernel    a CPU with a compiler                                            tiles summed in FP32
    Triton        a GPU with E4M3 units, and Triton                                our kernels: `kernels/`
    scaled_mm     Hopper, CUDA 12.9                                                PyTorch's own, by cuBLAS
    PyTorch       everywhere; what chapter 05 computes, bit for bit                tiles summed exactly, in FP64

The first of them that serves, in this order, is taken. Triton stands before scaled_mm for its values are proved without
a GPU (`make test-kernels`); where there is one, `make test-gpu` holds them to each other and times them.
"""

from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch.nn import functional as F

from deepseek_v3.native.build import why_no_kernels

NATIVE, TRITON, SCALED_MM, EXACT = "C++ kernel", "Triton", "scaled_mm", "PyTorch"
FORMS = (NATIVE, TRITON, SCALED_MM, EXACT)
E4M3_UNITS, HOPPER, BLOCK_SCALES = (8, 9), 9, (12, 9)  # compute capability; its first number; CUDA's version


class Gpu(NamedTuple):
    """What is known of the GPU at hand; capability None: PyTorch sees none."""

    capability: tuple[int, int] | None
    cuda: tuple[int, ...]
    has_triton: bool
    has_scaled_mm: bool


@lru_cache(maxsize=1)
def describe_gpu() -> Gpu:
    """Ask PyTorch."""
    version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return Gpu(capability, version, find_spec("triton") is not None, hasattr(F, "scaled_mm"))


def why_no_form(form: str, device: str) -> str | None:
    """What keeps a form from serving on a device, "cpu" or "cuda"; None where it serves."""
    if form == EXACT:
        return None
    if torch.compiler.is_compiling():
        return "torch.compile traces PyTorch's operations"
    if form == NATIVE:
        return f"kernels run on a CPU, not on {device}" if device != "cpu" else why_no_kernels()
    if device != "cuda":
        return f"it runs on a GPU, not on {device}"
    gpu = describe_gpu()
    if gpu.capability is None:
        return "PyTorch sees no GPU"
    has = f"this GPU has {gpu.capability[0]}.{gpu.capability[1]}"
    if form == TRITON:
        return why_no_triton(gpu, has)
    if not gpu.has_scaled_mm:
        return f"PyTorch {torch.__version__} has no torch.nn.functional.scaled_mm"
    if gpu.capability[0] != HOPPER:
        return f"block scales need compute capability {HOPPER}.x; {has}"
    if gpu.cuda < BLOCK_SCALES:
        return f"block scales need CUDA 12.9; PyTorch is built with {'.'.join(map(str, gpu.cuda))}"
    return None


def why_no_triton(gpu: Gpu, has: str) -> str | None:
    """What keeps Triton's kernels from a GPU."""
    if not gpu.has_triton:
        return "Triton is not installed: pip install 'deepseek-v3-from-scratch[gpu]'"
    if gpu.capability is None or gpu.capability < E4M3_UNITS:
        return f"E4M3 needs compute capability 8.9; {has}"
    return None


def which_form(device: str) -> str:
    """The first form that serves on a device."""
    return next(form for form in FORMS if why_no_form(form, device) is None)


def explain_forms(device: str) -> dict[str, str]:
    """Say of every form whether it serves on a device, and if not, why; for `deepseek-v3 doctor`."""
    chosen = which_form(device)
    told = {}
    for form in FORMS:
        why = why_no_form(form, device)
        rest = "every device has it; exact, and slow" if form == EXACT else f"could serve; {chosen} comes first"
        told[form] = "serves" if form == chosen else f"no: {why}" if why else rest
    return told
