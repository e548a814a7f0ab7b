"""Head and cross-entropy together: the sum of -log P of the labels that count, from what the head reads.

Letters: B batch, S positions, N = B * S, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.fp8.weight import dequantize_held
from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_labels, check_product
from deepseek_v3.ops.choice import KINDS, activation_dtype, kernel_serves


def sum_nats(
    hidden_BSD: Tensor, head_VD: Tensor, labels_BS: Tensor, ignored: int, scale: Tensor | None = None
) -> Tensor:
    """Sum of -log P of the labels that are not `ignored`, in FP32 (or FP64).

    By the kernel the logits are made, used and overwritten some hundred tokens at a time.

    Raises:
        IndexError: a label that is no row of the head.
    """
    check_product(hidden_BSD, head_VD, scale)
    check_labels(hidden_BSD, labels_BS)
    if scale is not None or not kernel_serves(hidden_BSD, head_VD):
        logits_NV = F.linear(hidden_BSD, dequantize_held(head_VD, scale, hidden_BSD.dtype)).flatten(0, -2)
        wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        return F.cross_entropy(wide_NV, labels_BS.flatten(), ignore_index=ignored, reduction="sum")
    labels_N, hidden_ND = labels_BS.reshape(-1).contiguous(), hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    counted = labels_N[labels_N != ignored]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < head_VD.shape[0]:
        raise IndexError(f"labels from {counted.min()} to {counted.max()} for {head_VD.shape[0]} logits")
    hidden_ND = hidden_ND.to(activation_dtype(hidden_ND)).contiguous()
    return _HeadLoss.apply(hidden_ND, head_VD, labels_N, ignored)  # type: ignore[return-value]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, ignored: int) -> Tensor:
        nats_N, dhidden_ND, dweight_VD = torch.empty(hidden_ND.shape[0]), None, None
        if any(ctx.needs_input_grad):
            dhidden_ND, dweight_VD = torch.empty_like(hidden_ND), torch.empty_like(weight_VD)
        run_kernel(
            "head_loss", KINDS[hidden_ND.dtype, weight_VD.dtype], hidden_ND, weight_VD, labels_N, ignored, nats_N,
            dhidden_ND, dweight_VD, hidden_ND.shape[0], *weight_VD.shape, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(dhidden_ND, dweight_VD)
        return nats_N.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        dhidden_ND, dweight_VD = ctx.saved_tensors
        scale = float(grads[0])
        return dhidden_ND * scale, dweight_VD * scale, None, None
