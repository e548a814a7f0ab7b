"""A decoding step: the next tokens of every row, by one call of a C++ kernel where it serves, else by the model itself.

    step = DecodeStep(model)
    hidden_BSD, logits_BSV = step(tokens_BS, cache)                         appends to the cache, as the model does

Equal to `model.hidden_states(tokens_BS, cache=cache)` and its head. The kernel (native_step.py) serves on a CPU, in
FP32, BF16 and FP8, and is faster for a few tokens; a prompt is the model's own work. Call `refresh` after the weights
have moved: see `prepare_step`.

Letters: B batch, S new tokens a row, N = B * S, D width, V vocabulary.
"""

import torch
from torch import Tensor

from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.serving.native_step import ModelParts, NativeStep


class DecodeStep:
    """The model's layers and MTP modules, prepared for decoding.

    Attributes:
        native: the kernel's view of the model; `native.ready` says whether it serves here.
    """

    def __init__(self, model: DeepseekV3) -> None:
        self.model = model
        self.native = NativeStep(ModelParts.of(model))

    def refresh(self) -> None:
        """Take over where the weights lie now."""
        self.native.refresh()

    @torch.inference_mode()
    def __call__(self, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Read the next tokens of every row; return normed hidden states and logits, and append to the cache.

        The kernel's logits are FP32 in a BF16 model too: rounding would only make ties.
        """
        if self.native.serves(tokens_BS, cache):
            hidden_ND, logits_NV = self.native.run(-1, None, tokens_BS, cache)
            return hidden_ND.view(*tokens_BS.shape, -1), logits_NV.view(*tokens_BS.shape, -1)
        hidden_BSD = self.model.hidden_states(tokens_BS, cache=cache)
        return hidden_BSD, self.model.lm_head(hidden_BSD)

    @torch.inference_mode()
    def predict(self, depth: int, hidden_BSD: Tensor, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Run one MTP module (depth from 0): row i reads the hidden state of the depth below and token i + depth + 1.

        Returns:
            The module's normed hidden states [B, S, D], and the logits [B, V] of each row's last.
        """
        if self.native.serves(tokens_BS, cache):
            hidden_ND, logits_BV = self.native.run(depth, hidden_BSD.flatten(0, 1), tokens_BS, cache)
            return hidden_ND.view(*tokens_BS.shape, -1), logits_BV
        count = tokens_BS.shape[1]
        rotation, mask_ST = self.model.place_tokens(count, cache)
        embedding_BSD = self.model.embed_tokens(tokens_BS)
        hidden_BSD = self.model.mtp[depth](hidden_BSD, embedding_BSD, rotation, cache=cache, mask_ST=mask_ST)
        cache.advance(count)
        return hidden_BSD, self.model.lm_head(hidden_BSD[:, -1])
