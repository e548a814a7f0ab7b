"""Tensors that a cast of the model leaves as they are: `model.to(torch.bfloat16)` and the like."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Whole numbers by width in bytes, which PyTorch moves and never casts.
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeepsExact(nn.Module):
    """A module with tensors of its own that move with the model and keep their format."""

    def exact(self) -> Iterable[Tensor]:
        """Name them."""
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Let PyTorch move or cast all tensors; it is shown the bits of these."""
        exact = {id(tensor) for tensor in self.exact()}

        def show_bits(tensor: Tensor) -> Tensor:
            if id(tensor) not in exact:
                return fn(tensor)
            return fn(tensor.view(WHOLE[tensor.element_size()])).view(tensor.dtype)

        return super()._apply(show_bits, recurse)
