"""RMSNorm, computed in FP32 (or FP64) and returned in the dtype of its input, with its gradient by hand.

    y = xhat * weight,    xhat = x * rstd,    rstd = 1 / sqrt(mean(x^2) + eps)
    dx = rstd * (g - xhat * mean(g * xhat)),    g = dy * weight

The gradient by hand takes fewer than half of the passes over memory that autograd's chain of small operations takes.

Letters: D width.
Source: arXiv:1910.07467; used before every sub-layer and on both latents, arXiv:2412.19437, section 2.1.1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from deepseek_v3.native import functions as native

LATENT_NORM_EPS = 1e-6  # the released code takes its default for the two latent norms, whatever the config says


class RMSNorm(nn.Module):
    """Scale each row to unit root mean square, then by a learned weight per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Normalise the last axis; under autocast the result is rounded here, once for all products that read it."""
        device, dtype = x_BSD.device.type, x_BSD.dtype
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if dtype in (torch.float32, torch.bfloat16) and native.serves(x_BSD):
            return native.rms_norm(x_BSD, self.weight, self.eps, dtype)
        wide_BSD = x_BSD.to(torch.promote_types(x_BSD.dtype, torch.float32))
        return _RMSNorm.apply(wide_BSD, self.weight, self.eps, dtype)  # type: ignore[return-value]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        square = torch.linalg.vector_norm(x_BSD, dim=-1, keepdim=True).square_()
        rstd_BS1 = square.div_(x_BSD.shape[-1]).add_(eps).rsqrt_()
        xhat_BSD = x_BSD * rstd_BS1
        ctx.save_for_backward(xhat_BSD, rstd_BS1, weight_D)
        return xhat_BSD.to(dtype) * weight_D.to(dtype)  # rounded before the weight, as released

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        xhat_BSD, rstd_BS1, weight_D = ctx.saved_tensors
        dy_BSD = grads[0].to(xhat_BSD.dtype)
        weight = weight_D.to(xhat_BSD.dtype)
        product_ND = (dy_BSD * xhat_BSD).flatten(0, -2)
        mean_BS1 = torch.mv(product_ND, weight).div_(-xhat_BSD.shape[-1]).view(rstd_BS1.shape)
        dx_BSD = (dy_BSD * weight).addcmul_(xhat_BSD, mean_BS1).mul_(rstd_BS1)
        return dx_BSD, product_ND.sum(0).to(weight_D.dtype), None, None
