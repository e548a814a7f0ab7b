"""The linear layer of the model: y = x W^T, through our own kernel where it serves."""

from torch import Tensor, nn

from deepseek_v3.native import functions as native


class Linear(nn.Linear):
    """A matrix without bias, [out, in]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., in] -> [..., out]."""
        return native.linear(input, self.weight) if native.serves(input, self.weight) else super().forward(input)
