"""SwiGLU, the dense feed-forward network: down(silu(gate x) * up x).

Source: arXiv:2002.05202; the experts of arXiv:2412.19437 have the same form.
"""

from torch import Tensor, nn
from torch.nn import functional as F

import deepseek_v3.ops as ops
from deepseek_v3.fp8.recipe import Recipe
from deepseek_v3.model.linear import Linear


class SwiGLU(nn.Module):
    """The dense layers' network, and the shared experts' (one of width n_shared_experts * F)."""

    recipe: Recipe | None = None  # of FP8 training

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Apply to every token."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        if any(type(p) is not Linear for p in projections):  # somebody's own: its weight may not be all that it is
            return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        if self.recipe is not None:
            gate, up, down = (p.weight for p in projections)
            return ops.swiglu_in_fp8(x_BSD, gate, up, down, self.recipe)
        weights, scales = [p.weight for p in projections], [p.scales("weight") for p in projections]
        return ops.swiglu(x_BSD, *weights, *scales)
