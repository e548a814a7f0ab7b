"""SwiGLU, the dense feed-forward network: down(silu(gate x) * up x).

Source: arXiv:2002.05202; the experts of arXiv:2412.19437 have the same form.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """The dense layers' network, and the shared experts' (one of width n_shared_experts * F)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Apply to every token."""
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
