"""Which device a command computes on: `--device auto|cpu|cuda`. Imports PyTorch only when it must choose."""

DEVICES = ("auto", "cpu", "cuda")


def choose_device(wish: str) -> str:
    """Return `cpu` or `cuda`; `auto` takes a GPU where PyTorch sees one.

    Raises:
        ValueError: an unknown device, or `cuda` where PyTorch sees none.
    """
    if wish not in DEVICES:
        raise ValueError(f"--device {wish} must be {', '.join(DEVICES)}")
    if wish == "cpu":
        return wish
    import torch  # here, so that options are checked without it

    if torch.cuda.is_available():
        return "cuda"
    if wish == "cuda":
        raise ValueError("--device cuda: PyTorch sees no GPU here; give --device cpu, or install PyTorch for CUDA")
    return "cpu"
