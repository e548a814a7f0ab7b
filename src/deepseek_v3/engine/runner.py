"""The model behind an engine: its decoding step, and the store that all sequences' blocks lie in.

Letters: S tokens of a sequence in this step, D width, V vocabulary.
"""

from collections.abc import Sequence as Rows
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.engine.decode_step import DecodeStep
from deepseek_v3.engine.decode_step import Rows as Ragged
from deepseek_v3.engine.request import EngineOptions
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.model.cache import LatentCache, LatentStore
from deepseek_v3.model.choices import ChoiceStore
from deepseek_v3.model.transformer import DeepseekV3


class Reading(NamedTuple):
    """Tokens that the main model or a module is to read of one sequence.

    Attributes:
        start: how many stand before them in its cache.
        wanted: of how many of the last ones the logits are wanted.
        below_SD: of a module, the hidden rows one depth below.
    """

    sequence: Sequence
    tokens: list[int]
    start: int
    wanted: int
    below_SD: Tensor | None = None


class Read(NamedTuple):
    """What was read of one sequence, among all that was read with it; a view is made where somebody looks.

    Attributes:
        hidden_ND, logits_MV: of all sequences.
        first, end: its tokens among N; `logits_first` and `logits_end` are those whose logits were wanted, among M.
    """

    hidden_ND: Tensor
    logits_MV: Tensor
    first: int
    end: int
    logits_first: int
    logits_end: int

    @property
    def hidden_SD(self) -> Tensor:
        """Its hidden rows."""
        return self.hidden_ND[self.first : self.end]

    @property
    def logits_SV(self) -> Tensor:
        """Its logits."""
        return self.logits_MV[self.logits_first : self.logits_end]

    def last_logits(self, count: int) -> Tensor:
        """Its last logits, [count, V]."""
        return self.logits_MV[self.logits_end - count : self.logits_end]


class Runner:
    """Reads rows of any length together; knows no requests, only their tokens and blocks."""

    def __init__(self, model: DeepseekV3, options: EngineOptions) -> None:
        weight, config = model.norm.weight, model.config
        self.modules = len(model.mtp) if options.modules is None else min(options.modules, len(model.mtp))
        self.main_layers = config.num_hidden_layers
        self.step = DecodeStep(model, fp8_drafts=options.fp8_drafts)
        self.store = LatentStore(
            config, options.n_blocks, options.block_size, layers=self.main_layers + self.modules,
            dtype=options.cache_dtype or weight.dtype, device=weight.device,
        )  # fmt: skip
        self.choices = ChoiceStore(config, options.n_blocks, options.block_size) if options.record_choices else None

    def read(self, readings: Rows[Reading], *, depth: int = -1) -> list[Read]:
        """Let the main model (depth -1) or a module read; return of each reading hidden rows and logits."""
        if not readings:
            return []
        tokens: list[int] = []
        wanted: list[int] = []
        ends = [(0, 0)]
        for reading in readings:
            tokens += reading.tokens
            wanted += range(len(tokens) - reading.wanted, len(tokens))
            ends.append((len(tokens), len(wanted)))
        counts = [len(r.tokens) for r in readings]
        tables, starts = [r.sequence.blocks for r in readings], [r.start for r in readings]
        layer = 0 if depth < 0 else self.main_layers + depth
        cache = LatentCache(self.store, tables, starts, first_layer=layer)
        below = [r.below_SD for r in readings if r.below_SD is not None]
        choice_LNA = self.choices.room(sum(counts)) if self.choices and depth < 0 else None
        hidden_ND, logits_MV = self.step.read(
            Ragged(tokens, counts),
            cache,
            depth=depth,
            below_ND=torch.cat(below) if below else None,
            logits_of=wanted,
            choice_LNA=choice_LNA,
        )
        if self.choices and choice_LNA is not None:
            self.choices.write(choice_LNA, tables, starts, counts)
        return [
            Read(hidden_ND, logits_MV, first, end, logits_first, logits_end)
            for (first, logits_first), (end, logits_end) in pairwise(ends)
        ]

    def choices_of(self, sequence: Sequence) -> Tensor | None:
        """Return the experts of all tokens that stood before the last one drawn, if they are recorded."""
        if self.choices is None or sequence.trace is None:
            return None
        return self.choices.read(sequence.blocks, sequence.prompt + len(sequence.trace.tokens) - 1)

    def erase(self, blocks: Rows[int]) -> None:
        """Clear blocks whose latents are no numbers: hidden by a mask, NaN would still spread."""
        self.store.latent_LPTW[:, list(blocks)] = 0
