"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight.

Letters: D width.
Source: arXiv:1910.07467; used before every sub-layer and on both latents, arXiv:2412.19437, section 2.1.1.
"""

import torch
from torch import Tensor, nn

import deepseek_v3.ops as ops

LATENT_NORM_EPS = 1e-6  # the released code takes its default for the two latent norms, whatever the config says


class RMSNorm(nn.Module):
    """Scale each row to unit root mean square, then by a learned weight per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Normalize the last axis."""
        return ops.rms_norm(x_BSD, self.weight, self.eps)
