"""The head: logits of a hidden state, and the loss of labels without the logits of all rows in memory.

    logits = h W^T        nats = sum over the labels that count of  -log softmax(logits)[label]

Letters: B batch, S positions, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepseek_v3.ops as ops
from deepseek_v3.model.linear import Linear

IGNORED = -100  # the label that cross-entropy skips


class Head(Linear):
    """A linear layer that can also score labels. Its weight is read in these two methods only, so it may be sharded."""

    def sum_nats(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the sum of -log P of the labels that are not IGNORED, in FP32 (or FP64)."""
        return ops.sum_nats(hidden_BSD, self.weight, labels_BS, IGNORED, self.scales("weight"))


def sum_nats(head: nn.Module, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
    """`Head.sum_nats` of whatever stands in the head's place: any module that gives logits."""
    if isinstance(head, Head):
        return head.sum_nats(hidden_BSD, labels_BS)
    logits_NV = head(hidden_BSD).flatten(0, -2)
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(wide_NV, labels_BS.flatten(), ignore_index=IGNORED, reduction="sum")
