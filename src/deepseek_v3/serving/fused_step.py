"""The decoding step in PyTorch operations: the layers of fused_layer.py over a latent cache, eager or compiled.

    step = FusedStep(ModelParts.of(model))     or FusedStep(parts, compiled=True): through torch.compile, for a GPU
    hidden_ND, logits_NV = step.run(-1, None, tokens_BS, cache)            depth -1: the main model; 0, 1, ...: a module

The form for a GPU, for dtypes that the C++ kernel does not know, and for a CPU without a compiler. What it copies of
the weights is told in fused_layer.py. Compiling takes half a minute for each batch and number of new tokens, and lasts
for the process; the number of cached tokens may grow without compiling again.

Letters: B batch, S new tokens a row, N = B * S, T slots, W = C + R cached values, V vocabulary.
"""

import warnings
from functools import partial

import torch
from torch import Tensor

from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.rope import rotation_at
from deepseek_v3.serving.fused_layer import FusedLayer, FusedNorm, Turn, attend_appended, attend_beside, multiply
from deepseek_v3.serving.native_step import ModelParts

COMPILE_UP_TO = 8  # tokens of a step; more are the work of matrix kernels, which no compiler betters


class FusedStep:
    """The model's layers and MTP modules, prepared for decoding.

    Attributes:
        compiled: whether steps run through torch.compile; falls to False, with a warning, where that cannot work.
    """

    def __init__(self, parts: ModelParts, *, compiled: bool = False) -> None:
        self.embed_tokens, self.norm, self.lm_head = parts.embed_tokens, FusedNorm(parts.norm), parts.lm_head
        self.frequency_R, self.rope_magnitude, self.compiled = parts.frequency_R, parts.rope_magnitude, compiled
        self.layers = [FusedLayer(block) for block in parts.layers]
        self.modules = parts.modules
        self.module_layers = [FusedLayer(module.block) for module in self.modules]
        self.turn_T: Turn | None = None
        if compiled:
            # main model and modules, with and without drafts, are graphs of one function: more than the default of 8
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            self._graph = torch.compile(self._read_beside, options={"size_asserts": False})  # a small step is calls

    def refresh(self) -> None:
        """Take over weights that have changed since."""
        for layer in [*self.layers, *self.module_layers]:
            layer.refresh()
        self.norm.refresh()

    def run(self, depth: int, below_ND: Tensor | None, tokens_BS: Tensor, cache: LatentCache) -> tuple[Tensor, Tensor]:
        """Run the main model (depth -1) or a module, in the form that serves."""
        turn = self._turn(cache, tokens_BS)
        # Slots 0 and 1 would be compiled as sizes of their own.
        if self.compiled and tokens_BS.numel() <= COMPILE_UP_TO and min(cache.lengths) >= 2:
            result = self._run_compiled(depth, below_ND, tokens_BS, turn, cache)
            if result is not None:
                return result
        count = tokens_BS.shape[1]
        mask_BSHT = self._mask(cache, count)

        def attend(layer: int, query_NHW: Tensor, new_NW: Tensor) -> Tensor:
            new_BSW = new_NW.view(-1, count, new_NW.shape[1]).to(cache.latent_LBTW.dtype)
            latent_BTW = cache.append(layer, new_BSW).to(new_NW.dtype)
            return attend_appended(query_NHW, latent_BTW, mask_BSHT, *self._score_sizes(layer))

        result = self._read(depth, below_ND, tokens_BS, turn, attend)
        cache.advance(count)
        return result

    def _read(
        self, depth: int, below_ND: Tensor | None, tokens_BS: Tensor, turn: Turn, attend
    ) -> tuple[Tensor, Tensor]:
        """The step itself: embedding, layers, norm, head."""
        x_ND = torch.embedding(self.embed_tokens.weight, tokens_BS.flatten())
        if depth < 0:
            layers, norm = self.layers, self.norm
        else:
            module = self.modules[depth]
            x_ND = multiply(torch.cat((module.enorm(x_ND), module.hnorm(below_ND)), -1), module.eh_proj.weight)
            layers, norm = [self.module_layers[depth]], module.shared_head_norm
        for i, layer in enumerate(layers):
            x_ND = layer.read(x_ND, turn, partial(attend, i))
        hidden_ND = norm(x_ND)
        wanted_ND = hidden_ND if depth < 0 else hidden_ND.view(*tokens_BS.shape, -1)[:, -1]
        return hidden_ND, multiply(wanted_ND, self.lm_head.weight)

    def _run_compiled(
        self, depth: int, below_ND: Tensor | None, tokens_BS: Tensor, turn: Turn, cache: LatentCache
    ) -> tuple[Tensor, Tensor] | None:
        """Run a compiled graph and write the new latents; None where there is no working compiler."""
        longest = max(cache.lengths)
        latent_LBTW = cache.latent_LBTW[:, :, :longest]
        torch._dynamo.mark_dynamic(latent_LBTW, 2)
        mask_B1T = None
        if min(cache.lengths) < longest:
            lengths_B = torch.tensor(cache.lengths, device=tokens_BS.device)
            mask_B1T = torch.arange(longest, device=tokens_BS.device) < lengths_B[:, None, None]
            torch._dynamo.mark_dynamic(mask_B1T, 2)
        try:
            hidden_ND, logits_NV, new_LBSW = self._graph(depth, below_ND, tokens_BS, turn, latent_LBTW, mask_B1T)
        except Exception as error:  # no compiler, no headers, no Triton: the step works without
            self.compiled = False
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"decoding runs uncompiled: torch.compile failed here ({reason})",
                RuntimeWarning,
                stacklevel=4,
            )
            return None
        count = tokens_BS.shape[1]
        for layer, new_BSW in enumerate(new_LBSW if min(cache.lengths) < longest else []):
            cache.append(layer, new_BSW)
        if min(cache.lengths) == longest:
            cache.latent_LBTW[:, :, longest : longest + count] = new_LBSW
        cache.advance(count)
        return hidden_ND, logits_NV

    def _read_beside(
        self,
        depth: int,
        below_ND: Tensor | None,
        tokens_BS: Tensor,
        turn: Turn,
        latent_LBTW: Tensor,
        mask_B1T: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is compiled: a step that only reads the cache, and returns the new latents [L, B, S, W]."""
        news: list[Tensor] = []

        def attend(layer: int, query_NHW: Tensor, new_NW: Tensor) -> Tensor:
            news.append(new_NW)
            latent_BTW = latent_LBTW[layer].to(new_NW.dtype)
            return attend_beside(query_NHW, new_NW, latent_BTW, mask_B1T, *self._score_sizes(layer))

        hidden_ND, logits_NV = self._read(depth, below_ND, tokens_BS, turn, attend)
        return hidden_ND, logits_NV, torch.stack(news).unflatten(1, tokens_BS.shape)

    def _score_sizes(self, layer: int) -> tuple[float, int]:
        attention = self.layers[layer].attention
        return attention.scale, attention.latent_width

    def _turn(self, cache: LatentCache, tokens_BS: Tensor) -> Turn:
        """Cosines and sines of the next positions, from a table that grows with the cache."""
        if self.turn_T is None or self.turn_T.cos.shape[0] < cache.capacity:
            slots_T = torch.arange(cache.capacity, device=self.frequency_R.device)
            cos, sin = rotation_at(slots_T, self.frequency_R, self.rope_magnitude)
            cos_TR, sin_TR = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
            self.turn_T = Turn(cos_TR.unsqueeze(1), sin_TR.unsqueeze(1))
        batch, count = tokens_BS.shape
        start = cache.lengths[0]
        if max(cache.lengths) + count > cache.capacity:
            cache.positions(count)  # says what does not fit
        if batch == 1:
            return Turn(self.turn_T.cos[start : start + count], self.turn_T.sin[start : start + count])
        positions_N = cache.positions(count).expand(batch, count).flatten()
        return Turn(self.turn_T.cos[positions_N], self.turn_T.sin[positions_N])

    def _mask(self, cache: LatentCache, count: int) -> Tensor | None:
        """Which slots each new token sees, [B, S, 1, T] or [1, S, 1, T]; None where all see all."""
        longest = max(cache.lengths)
        if count == 1 and min(cache.lengths) == longest:
            return None
        positions = cache.positions(count).view(-1, count, 1, 1)
        return torch.arange(longest + count, device=positions.device) <= positions
