"""Our matrix products against PyTorch's, alone: python -m benchmarks.products

The three products of a linear layer at the shapes of `nano`, one thread, GFLOP/s at best of some rounds in turns. How
little they differ says where a training step gains: in what lies between the products.
"""

import torch

from benchmarks.asking import read_values
from benchmarks.machine import interleave
from deepseek_v3.native.build import have_kernels, run_kernel

SHAPES = [(2048, 128, 256), (2048, 192, 128), (2048, 128, 64), (512, 256, 256), (2048, 4096, 256)]  # rows, out, in


def measure(dtype: torch.dtype, rows: int, out: int, width: int, rounds: int = 15) -> dict[str, float]:
    """GFLOP/s of y = x W^T, dx = dy W and dW = dy^T x, by PyTorch and by our kernel."""
    x, w, dy = (torch.randn(shape).to(dtype) for shape in ((rows, width), (out, width), (rows, out)))
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
    kind = 0 if dtype == torch.float32 else 2
    ways = {
        "x W^T, PyTorch": lambda: torch.mm(x, w.mT, out=y),
        "x W^T, ours": lambda: run_kernel("linear", kind, x, w, None, y, rows, out, width, 1, 1),
        "dy W, PyTorch": lambda: torch.mm(dy, w, out=dx),
        "dy W, ours": lambda: run_kernel("linear", kind, dy, w, None, dx, rows, width, out, 0, 1),
        "dy^T x, PyTorch": lambda: torch.mm(dy.mT, x, out=dw),
        "dy^T x, ours": lambda: run_kernel("linear_weight_gradient", kind, dy, x, dw, rows, out, width, 1),
    }
    return {name: 2e-9 * rows * out * width / min(t) for name, t in interleave(ways, rounds).items()}


def main() -> None:
    """Print one line a shape and dtype."""
    if not have_kernels():
        print("no C++ compiler here, so there are no products of ours")
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print("\nproducts alone, one thread, GFLOP/s")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            rates = measure(dtype, *shape)
            text = "   ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
            print(f"  {str(dtype).removeprefix('torch.'):<9} {shape!s:<18} {text}")
    torch.set_num_threads(threads)


if __name__ == "__main__":
    read_values(__doc__)
    main()
