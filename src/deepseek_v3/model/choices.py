"""The experts that tokens were sent to, kept beside their latents in the blocks of the cache.

A beginning that another sequence has read brings its own along; what a preemption takes away is written again.

Letters: N tokens, L layers with experts, A experts per token.
"""

from array import array
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig


def routed_layers(config: ModelConfig) -> list[int]:
    """Return the layers of the main model that have experts."""
    return [layer for layer in range(config.num_hidden_layers) if config.is_moe_layer(layer)]


class ChoiceStore:
    """The experts of every token in the cache, by its slot."""

    def __init__(self, config: ModelConfig, n_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        layers = len(routed_layers(config))
        self.choice_NLA = torch.zeros(n_blocks * block_size, layers, config.num_experts_per_tok, dtype=torch.int16)

    def room(self, count: int) -> Tensor:
        """Return where a step writes the choices of its tokens, [L, N, A]."""
        _, layers, chosen = self.choice_NLA.shape
        return torch.empty(layers, count, chosen, dtype=torch.int64)

    def write(self, choice_LNA: Tensor, tables: Rows[array], starts: Rows[int], counts: Rows[int]) -> None:
        """Put the choices of a step to where their latents lie."""
        slots = [s for row in zip(tables, starts, counts) for s in self._slots(*row)]
        self.choice_NLA[torch.tensor(slots)] = choice_LNA.transpose(0, 1).to(torch.int16)

    def read(self, table: array, count: int) -> Tensor:
        """Return the choices of the first `count` tokens of a row."""
        return self.choice_NLA[torch.tensor(self._slots(table, 0, count))]

    def _slots(self, table: array, start: int, count: int) -> list[int]:
        size = self.block_size
        return [table[place // size] * size + place % size for place in range(start, start + count)]
