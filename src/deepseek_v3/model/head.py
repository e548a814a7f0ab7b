"""The head: logits of a hidden state, and the loss of labels without the logits of all rows in memory.

    logits = h W^T        nats = sum over the labels that count of  -log softmax(logits)[label]

Letters: B batch, S positions, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from deepseek_v3.model.linear import Linear
from deepseek_v3.native import functions as native

IGNORED = -100  # the label that cross-entropy skips


class Head(Linear):
    """A linear layer that can also score labels. Its weight is read in these two methods only, so it may be sharded."""

    def sum_nats(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the sum of -log P of the labels that are not IGNORED, in FP32 (or FP64)."""
        if self.scales("weight") is None and native.serves(hidden_BSD, self.weight):
            return native.head_loss(hidden_BSD, self.weight, labels_BS, IGNORED)
        logits_NV = F.linear(hidden_BSD, self.numbers("weight", hidden_BSD.dtype)).flatten(0, 1)
        wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        return F.cross_entropy(wide_NV, labels_BS.flatten(), ignore_index=IGNORED, reduction="sum")
