"""The matrices of the model: y = x W^T, through our own kernel where it serves, and the rows of the embedding."""

from torch import Tensor, nn
from torch.nn import functional as F

from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.native import functions as native


class Linear(HoldsFP8, nn.Linear):
    """A matrix without bias, [out, in]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def reset_parameters(self) -> None:
        """Draw as PyTorch does, but nothing on `meta`, where drawing imports PyTorch's compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., in] -> [..., out]."""
        if native.serves(input, self.weight):
            return native.linear(input, self.weight, self.scales("weight"))
        return F.linear(input, self.numbers("weight", input.dtype))


class Embedding(nn.Embedding):
    """A row for each token."""

    def reset_parameters(self) -> None:
        """Draw as PyTorch does, but nothing on `meta`, where drawing imports PyTorch's compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()
