"""The controls of FP8 training in one layer, before they are in a run: python -m experiments.fp8_layer

One linear operation, forward and backward, with the very operations of a training step, in every variant of
`--fp8-variant`; beside it the exact products in FP64. The error of a tensor is |got - exact| / |exact|, of the row
that is hit worst the largest of those. Then 200 updates of the layer's weight by AdamW: how far the weights are from
those of FP32 masters and moments, as a part of the way that these went.

Numbers are drawn: inputs normal; gradients normal times a size of their own for each token, a factor of 30 up or down,
around 10^-5; weights normal, 0.02.

Letters: N tokens, I inputs, O outputs.
Source: arXiv:2412.19437, 3.3.1 (masters), 3.3.2 (tiles, E4M3 everywhere).
"""

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops
from benchmarks.asking import read_values
from deepseek_v3.fp8.recipe import PLAIN, VARIANTS, vary
from deepseek_v3.training.optimizer import build_optimizer
from deepseek_v3.training.options import TrainOptions

TOKENS, INPUTS, OUTPUTS = 512, 512, 384
STEPS, RATE = 200, 1e-4


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [N, I], weight [O, I], gradients by outputs [N, O]."""
    g = torch.Generator().manual_seed(seed)
    x_NI = torch.randn(TOKENS, INPUTS, generator=g)
    weight_OI = 0.02 * torch.randn(OUTPUTS, INPUTS, generator=g)
    size_N1 = 1e-5 * torch.exp(torch.randn(TOKENS, 1, generator=g).clamp(-3, 3) * 1.13)
    return x_NI, weight_OI, size_N1 * torch.randn(TOKENS, OUTPUTS, generator=g)


def products(variant: str, x_NI: Tensor, weight_OI: Tensor, dy_NO: Tensor) -> dict[str, Tensor]:
    """Return y, dx and dW of the layer in FP8."""
    x_NI, weight_OI = x_NI.clone().requires_grad_(), weight_OI.clone().requires_grad_()
    y_NO = ops.linear_in_fp8(x_NI, weight_OI, vary(PLAIN, variant))
    dx_NI, dW_OI = torch.autograd.grad(y_NO, (x_NI, weight_OI), dy_NO)
    return {"y": y_NO.detach(), "dx": dx_NI, "dW": dW_OI}


def errors(variant: str, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return of y, dx and dW: the error of the tensor, and of its worst row."""
    x_NI, weight_OI, dy_NO = drawn = draw(seed)
    x64, w64, dy64 = (t.double() for t in drawn)
    exact = {"y": x64 @ w64.T, "dx": dy64 @ w64, "dW": dy64.T @ x64}
    found = {}
    for name, got in products(variant, x_NI, weight_OI, dy_NO).items():
        off, want = got.double() - exact[name], exact[name]
        found[name] = float(off.norm() / want.norm()), float((off.norm(dim=1) / want.norm(dim=1)).max())
    return found


def drift(seed: int = 0, **options: str) -> float:
    """Return how far updates with these options lead away from those in FP32, as a part of the way of those."""
    g = torch.Generator().manual_seed(seed)
    weight_OI = draw(seed)[1].bfloat16().float()  # both begin where BF16 can
    kept = []
    for chosen in ({"moments": "fp32"}, options):
        layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
        layer.weight.data.copy_(weight_OI)
        settings = TrainOptions(lr=RATE, weight_decay=0.0, **chosen)  # type: ignore[arg-type]
        optimizer = build_optimizer(layer, settings, settings.precision)
        g.manual_seed(seed)
        for _ in range(STEPS):
            layer.weight.grad = 1 + torch.randn(OUTPUTS, INPUTS, generator=g)
            optimizer.step()
        kept.append(layer.weight.detach())
    return float((kept[1] - kept[0]).norm() / (kept[0] - weight_OI).norm())


def main() -> None:
    """Print both tables."""
    print(f"{'error, in %':<24}{'y':>8}{'dx':>8}{'dW':>8}   of the worst row{'y':>8}{'dx':>8}{'dW':>8}")
    for variant in VARIANTS:
        if variant != "bf16-weights":  # the optimizer's part: below
            found = errors(variant).values()
            whole, row = ("".join(f"{100 * pair[k]:8.2f}" for pair in found) for k in (0, 1))
            print(f"{variant:<24}{whole}{'':>19}{row}")
    print(f"\n{STEPS} updates, distance from those in FP32, in % of their way")
    print(f"{'BF16 moments':<24}{100 * drift(moments='bf16'):8.2f}")
    print(f"{'bf16-weights':<24}{100 * drift(precision='fp8', fp8_variant='bf16-weights'):8.2f}")


if __name__ == "__main__":
    read_values(__doc__)
    main()
