"""A model and its tokenizer for commands that write or measure text. Imports PyTorch only when it loads."""

from typing import Any

from deepseek_v3.device import choose_device

FORMATS = ("float32", "bfloat16", "fp8")


def load_in_format(run: str, wish: str | None, *, keep_fp8: bool, mtp: bool) -> tuple[Any, Any]:
    """Load a run or checkpoint with its tokenizer, its weights in a format.

    Args:
        wish: one of FORMATS, or None for as stored. In FP8 all matrices are held as blocks of 128 x 128, each with a
            scale, the head too; norms, embedding, routers and `eh_proj` are BF16.
        keep_fp8: of as stored, that weights stored in FP8 stay so in memory.
    Raises:
        ValueError: an unknown format, or no tokenizer beside the model.
        OSError: no such folder or file.
    """
    if wish is not None and wish not in FORMATS:
        raise ValueError(f"--dtype {wish} must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    import torch

    from deepseek_v3.model_io import load
    from deepseek_v3.weights.load import hold_in_fp8

    dtype = None if wish is None else torch.bfloat16 if wish == "fp8" else getattr(torch, wish)
    model, tokenizer = load(run, dtype=dtype, keep_fp8=wish == "fp8" or (wish is None and keep_fp8), mtp=mtp)
    if tokenizer is None:
        raise ValueError(f"{run} has no tokenizer.json, so text cannot become tokens; copy it there")
    if wish == "fp8":
        hold_in_fp8(model)
    return model, tokenizer


def load_writer(run: str, *, dtype: str | None, device: str, without_mtp: bool) -> tuple[Any, Any]:
    """Load a run or checkpoint onto a device, with its tokenizer.

    Args:
        dtype: one of FORMATS; None as stored, and FP8 weights then stay FP8 where kernels read them.
    Raises:
        ValueError: an unknown dtype or device, or no tokenizer beside the model.
        OSError: no such folder or file.
    """
    place = choose_device(device)
    from deepseek_v3.native.build import have_kernels
    from deepseek_v3.native.heap import keep_freed_memory

    keep_fp8 = place == "cpu" and have_kernels()  # else decoded anew in every step
    model, tokenizer = load_in_format(run, dtype, keep_fp8=keep_fp8, mtp=not without_mtp)
    keep_freed_memory()
    return model.to(place), tokenizer
