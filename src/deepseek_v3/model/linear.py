"""The matrices of the model: y = x W^T, and the rows of the embedding."""

from torch import Tensor, nn

import deepseek_v3.ops as ops
from deepseek_v3.fp8.recipe import Recipe
from deepseek_v3.fp8.weight import HoldsFP8


class Linear(HoldsFP8, nn.Linear):
    """A matrix without bias, [out, in]; with a `recipe`, its products are those of FP8 training."""

    recipe: Recipe | None = None

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def reset_parameters(self) -> None:
        """Draw as PyTorch does, but nothing on `meta`, where drawing imports PyTorch's compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., in] -> [..., out]."""
        if self.recipe is not None:
            return ops.linear_in_fp8(input, self.weight, self.recipe)
        return ops.linear(input, self.weight, self.scales("weight"))


class Embedding(nn.Embedding):
    """A row for each token."""

    def reset_parameters(self) -> None:
        """Draw as PyTorch does, but nothing on `meta`, where drawing imports PyTorch's compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()
