"""Which products of a model are FP8 when it trains in FP8: those whose weights the released checkpoint stores in FP8.

    use_fp8_products(model)      from now on; the weights stay what they are, FP32

    FP8             every projection of attention, dense and shared networks, routed experts; those of MTP modules too
    BF16, FP32      embedding, head, router, norms, attention's core, `eh_proj`

Source: arXiv:2412.19437, 3.3.1 and Fig. 6; the released tensor index (`eh_proj` is BF16 there).
"""

from torch import nn

from deepseek_v3.fp8.recipe import AFTER_ATTENTION, DISPATCHED, PLAIN, vary
from deepseek_v3.model.attention import MultiHeadLatentAttention
from deepseek_v3.model.block import Block
from deepseek_v3.model.linear import Linear
from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.moe import Experts


def use_fp8_products(model: nn.Module, variant: str = "report") -> None:
    """Let every block's products be FP8; a variant of `fp8/recipe.py` changes how, to compare with."""
    for block in model.modules():
        if not isinstance(block, Block):
            continue
        for module in block.modules():
            if isinstance(module, MultiHeadLatentAttention):
                for linear in module.children():
                    if isinstance(linear, Linear):
                        linear.recipe = vary(AFTER_ATTENTION if linear is module.o_proj else PLAIN, variant)
            elif isinstance(module, SwiGLU):
                module.recipe = vary(PLAIN, variant)
            elif isinstance(module, Experts):
                module.recipe = vary(DISPATCHED, variant)
