"""A decoding step: the next tokens of every row, read by the form that is fastest where the model is.

    step = DecodeStep(model)
    hidden_BSD, logits_BSV = step(tokens_BS, cache)                         appends to the cache, as the model does

Equal to `model.hidden_states(tokens_BS, cache=cache)` and its head, faster for a few tokens; a prompt is the model's
own work. Call `refresh` after the weights have moved: see `prepare_step`. There are two forms:

    native_step.py    one call of a C++ kernel: on a CPU, in FP32 and BF16
    fused_step.py     PyTorch operations, eager or through torch.compile: on a GPU, and where the kernel does not serve

Letters: B batch, S new tokens a row, N = B * S, D width, V vocabulary.
"""

import warnings

import torch
from torch import Tensor

from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.serving.fused_step import FusedStep
from deepseek_v3.serving.native_step import ModelParts, NativeStep


class DecodeStep:
    """The model's layers and MTP modules, prepared for decoding.

    Attributes:
        native: the kernel's view of the model; `native.ready` says whether it serves here.
    """

    def __init__(self, model: DeepseekV3, *, compiled: bool = False) -> None:
        """Prepare; `compiled` means torch.compile on a GPU. On a CPU the kernel is compiled already, asked or not."""
        self.parts = ModelParts.of(model)
        self.native = NativeStep(self.parts)
        self._fused: FusedStep | None = None
        self.compiled = compiled
        if compiled and model.lm_head.weight.device.type == "cpu":
            self.compiled = False
            if not self.native.ready:
                warnings.warn(
                    "decoding runs in PyTorch operations: on a CPU the compiled step is the C++ kernel, which reads "
                    f"FP32 and BF16 (this model is {model.lm_head.weight.dtype}), needs g++ and is not switched off",
                    RuntimeWarning,
                    stacklevel=2,
                )

    @property
    def fused(self) -> FusedStep:
        """The form in PyTorch operations, made when it is first needed: it copies some of the weights."""
        if self._fused is None:
            self._fused = FusedStep(self.parts, compiled=self.compiled)
        return self._fused

    def refresh(self) -> None:
        """Take over weights that have changed since."""
        self.native.refresh()
        if self._fused is not None:
            self._fused.refresh()

    @torch.inference_mode()
    def __call__(self, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Read the next tokens of every row; return normed hidden states and logits, and append to the cache.

        The kernel's logits are FP32 in a BF16 model too: rounding would only make ties.
        """
        hidden_ND, logits_NV = self._run(-1, None, tokens_BS, cache)
        return hidden_ND.view(*tokens_BS.shape, -1), logits_NV.view(*tokens_BS.shape, -1)

    @torch.inference_mode()
    def predict(self, depth: int, hidden_BSD: Tensor, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Run one MTP module (depth from 0): row i reads the hidden state of the depth below and token i + depth + 1.

        Returns:
            The module's normed hidden states [B, S, D], and the logits [B, V] of each row's last.
        """
        hidden_ND, logits_BV = self._run(depth, hidden_BSD.flatten(0, 1), tokens_BS, cache)
        return hidden_ND.view(*tokens_BS.shape, -1), logits_BV

    def _run(self, depth: int, below_ND: Tensor | None, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Run the main model (depth -1) or a module, in the form that serves."""
        form = self.native if self.native.serves(tokens_BS, cache) else self.fused
        return form.run(depth, below_ND, tokens_BS, cache)
