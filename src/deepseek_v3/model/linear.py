"""The linear layer of the model: y = x W^T, through our own kernel where it serves."""

from torch import Tensor, nn
from torch.nn import functional as F

from deepseek_v3.fp8.weight import HoldsFP8
from deepseek_v3.native import functions as native


class Linear(HoldsFP8, nn.Linear):
    """A matrix without bias, [out, in]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., in] -> [..., out]."""
        if native.serves(input, self.weight):
            return native.linear(input, self.weight, self.scales("weight"))
        return F.linear(input, self.numbers("weight", input.dtype))
