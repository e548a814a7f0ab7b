"""A model and its tokenizer for commands that write text. Imports PyTorch only when it loads."""

from typing import Any

from deepseek_v3.device import choose_device


def load_writer(run: str, *, dtype: str | None, device: str, without_mtp: bool) -> tuple[Any, Any]:
    """Load a run or checkpoint onto a device, with its tokenizer.

    Args:
        dtype: float32 or bfloat16; None as stored, and FP8 weights then stay FP8 where kernels read them.
    Raises:
        ValueError: an unknown dtype or device, or no tokenizer beside the model.
        OSError: no such folder or file.
    """
    place = choose_device(device)
    import torch

    from deepseek_v3.model_io import load
    from deepseek_v3.native.build import have_kernels
    from deepseek_v3.native.heap import keep_freed_memory

    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype} must be float32 or bfloat16")
    keep_fp8 = dtype is None and place == "cpu" and have_kernels()  # else decoded anew in every step
    model, tokenizer = load(run, dtype=getattr(torch, dtype) if dtype else None, keep_fp8=keep_fp8, mtp=not without_mtp)
    if tokenizer is None:
        raise ValueError(f"{run} has no tokenizer.json, so text cannot become tokens; copy it there")
    keep_freed_memory()
    return model.to(place), tokenizer
