"""RMSNorm, computed in FP32 (or FP64) and returned in the dtype of its input, with its gradient by hand.

    y = xhat * weight,    xhat = x * rstd,    rstd = 1 / sqrt(mean(x^2) + eps)
    dx = rstd * (g - xhat * mean(g * xhat)),    g = dy * weight

The gradient by hand takes fewer than half of the passes over memory that autograd's chain of small operations takes.

Letters: D width.
Source: arXiv:1910.07467.
"""

from typing import Any

import torch
from torch import Tensor

from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_norm
from deepseek_v3.ops.choice import kernel_serves, weight_lies_well

NORM_DTYPES = (torch.float32, torch.bfloat16)  # of rows and weight, for the kernel


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalize the last axis; under autocast the result is rounded here, once for all products that read it."""
    check_norm(x, weight_D)
    device, dtype = x.device.type, x.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype in NORM_DTYPES and weight_D.dtype in NORM_DTYPES and weight_lies_well(x, weight_D) and kernel_serves(x):
        return _RMSNormKernel.apply(x, weight_D, eps, dtype)  # type: ignore[return-value]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _RMSNorm.apply(wide, weight_D, eps, dtype)  # type: ignore[return-value]


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


class _RMSNormKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        width = x.shape[-1]
        x_ND = x.reshape(-1, width) if x.stride(-1) == 1 else x.contiguous().view(-1, width)
        y = torch.empty(x.shape, dtype=dtype)
        rstd_N = torch.empty(x_ND.shape[0])
        ctx.arguments = (
            *(int(t.dtype == torch.bfloat16) for t in (x, y, weight_D)),
            x_ND.stride(0),
            x_ND.shape[0],
            width,
        )
        kinds, (stride, rows, _) = ctx.arguments[:3], ctx.arguments[3:]
        run_kernel(
            "rms_norm_forward", *kinds, x_ND, stride, weight_D, y, rstd_N, rows, width, eps, torch.get_num_threads()
        )
        ctx.save_for_backward(x_ND, weight_D, rstd_N)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x_ND, weight_D, rstd_N = ctx.saved_tensors
        kinds, (stride, rows, width) = ctx.arguments[:3], ctx.arguments[3:]
        dx, dweight_D = torch.empty(ctx.shape, dtype=x_ND.dtype), torch.empty_like(weight_D)
        dy = grads[0].contiguous()
        run_kernel(
            "rms_norm_backward", *kinds, x_ND, stride, weight_D, rstd_N, dy, dx, dweight_D, rows, width,
            torch.get_num_threads(),
        )  # fmt: skip
        return dx, dweight_D, None, None
