"""The latent cache: kv_lora_rank + qk_rope_head_dim values per token and layer, and nothing else.

A token's slot is its position. A query at position p attends to the slots 0..p, so one rule is the mask of prefill,
chunked prefill, decoding, verification of drafts and batches with padding: what lies beyond a row's length is never
seen, and the next token overwrites it.

Letters: B batch, S new tokens, T slots, C latent, R rotary width.
Source: arXiv:2412.19437, section 2.1.1 (the two boxed vectors).
"""

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig


class LatentCache:
    """Normed latents and rotated shared keys, [layers, B, capacity, C + R], with a length per row."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate for `capacity` tokens a row; `layers` defaults to the main model's.

        Raises:
            ValueError: a size below 1.
        """
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache needs batch={batch} and capacity={capacity} of at least 1")
        layers = config.num_hidden_layers if layers is None else layers
        self.latent_LBTW = torch.zeros(layers, batch, capacity, config.cache_width, dtype=dtype, device=device)
        self.lengths = [0] * batch

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.latent_LBTW.shape[2]

    @property
    def bytes_per_token(self) -> int:
        """What one more token costs, all layers together."""
        layers, _, _, width = self.latent_LBTW.shape
        return layers * width * self.latent_LBTW.element_size()

    def positions(self, count: int) -> Tensor:
        """Positions of the next `count` tokens: [S] when all rows are equally long, else [B, S].

        Raises:
            ValueError: they do not fit.
        """
        longest = max(self.lengths)
        if longest + count > self.capacity:
            raise ValueError(f"{longest} cached + {count} new tokens exceed the cache's capacity of {self.capacity}")
        device = self.latent_LBTW.device
        if len(set(self.lengths)) == 1:
            return torch.arange(longest, longest + count, device=device)
        start_B = torch.tensor(self.lengths, device=device)
        return start_B[:, None] + torch.arange(count, device=device)

    def append(self, layer: int, new_BSW: Tensor) -> Tensor:
        """Write the new tokens' latents behind each row; return [B, T, C + R], T up to the longest row.

        The lengths move when the whole model has appended: see `advance`.
        """
        store_BTW = self.latent_LBTW[layer]
        count, longest = new_BSW.shape[1], max(self.lengths)
        if min(self.lengths) == longest:
            store_BTW[:, longest : longest + count] = new_BSW
        else:
            for row, start in enumerate(self.lengths):
                store_BTW[row, start : start + count] = new_BSW[row]
        return store_BTW[:, : longest + count]

    def advance(self, count: int) -> None:
        """Count the tokens that every layer has appended."""
        self.lengths = [n + count for n in self.lengths]

    def truncate(self, lengths: list[int]) -> None:
        """Forget what lies beyond the given lengths: padding, or drafts that were rejected.

        Raises:
            ValueError: a length that the row does not have.
        """
        if len(lengths) != len(self.lengths) or any(not 0 <= n <= have for n, have in zip(lengths, self.lengths)):
            raise ValueError(f"cannot truncate rows of lengths {self.lengths} to {lengths}")
        self.lengths = list(lengths)
