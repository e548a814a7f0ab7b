"""Activations of blocks are made again in the backward pass instead of kept: less memory for one more forward pass.

Each block keeps its input only. Its second forward pass is the first one bit by bit, and its routing is recorded once.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from deepseek_v3.model.block import Block


def recompute_blocks(model: nn.Module) -> None:
    """Let every block of the model, those of MTP modules too, recompute its activations from now on."""
    for block in model.modules():
        if isinstance(block, Block) and "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
