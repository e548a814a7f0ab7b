"""The latent cache: kv_lora_rank + qk_rope_head_dim values per token and layer, and nothing else.

    store = LatentStore(config, n_blocks=100, block_size=16)          memory for 1600 tokens, whoever's they are
    cache = LatentCache(store, tables=[[5, 17], [3]], lengths=[20, 2]) two rows of it: whose blocks they are, how full
    cache = LatentCache.dense(config, batch=2, capacity=64)            the special case of one block a row

A token's place in its row is its position; the row's table says which block of the store holds it. A query at position
p attends to the positions 0..p, so one rule is the mask of prefill, chunked prefill, decoding, verification of drafts
and batches with padding: what lies beyond a row's length is never seen, and the next token overwrites it.

The layers of the multi-token prediction modules are further layers of the same store, found through the same tables.

Letters: B rows, S new tokens, T positions, P blocks, K blocks of a table, C latent, R rotary width, W = C + R.
Source: arXiv:2412.19437, section 2.1.1 (the two boxed vectors).
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig


class LatentStore:
    """Normed latents and rotated shared keys, [layers, n_blocks, block_size, C + R]; knows no rows."""

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        block_size: int,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate; `layers` defaults to the main model's, and is more where modules are to have their latents too.

        Raises:
            ValueError: a size below 1.
        """
        if n_blocks < 1 or block_size < 1:
            raise ValueError(f"a store needs n_blocks={n_blocks} and block_size={block_size} of at least 1")
        self.main_layers = config.num_hidden_layers
        layers = self.main_layers if layers is None else layers
        self.latent_LPTW = torch.zeros(layers, n_blocks, block_size, config.cache_width, dtype=dtype, device=device)

    @property
    def n_blocks(self) -> int:
        """Blocks, for all rows together."""
        return self.latent_LPTW.shape[1]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.latent_LPTW.shape[2]

    @property
    def bytes_per_token(self) -> int:
        """What one more token costs, all layers together."""
        layers, _, _, width = self.latent_LPTW.shape
        return layers * width * self.latent_LPTW.element_size()


class Past(NamedTuple):
    """What the layers of one forward pass know of the tokens before theirs: see `DeepseekV3.place_tokens`.

    Attributes:
        mask_ST: True where a query may look: [S, T] or [B, 1, S, T]; None where attention is causal by itself.
        from_M, to_M: which of the B * S new tokens are real, and the slots of the store that they go to.
        read_BT: the slots that are read; None where they lie in order, a row's behind each other.
        seen: T.
        layer: of the cache.
    """

    cache: "LatentCache"
    mask_ST: Tensor | None
    from_M: Tensor
    to_M: Tensor
    read_BT: Tensor | None
    seen: int
    layer: int = 0

    def at(self, layer: int) -> "Past":
        """Return the same at another layer."""
        return self._replace(layer=layer)

    def append(self, new_BSW: Tensor) -> Tensor:
        """Write the new tokens' latents behind each row; return [B, T, C + R], T up to the longest row.

        The lengths move when the whole model has appended: see `LatentCache.advance`.
        """
        store_PTW = self.cache.layer(self.layer)
        slots_NW = store_PTW.flatten(0, 1)
        slots_NW.index_copy_(0, self.to_M, new_BSW.flatten(0, 1)[self.from_M].to(store_PTW.dtype))
        if self.read_BT is None:
            return store_PTW[:, : self.seen].to(new_BSW.dtype)
        read_NW = slots_NW.index_select(0, self.read_BT.flatten())
        return read_NW.unflatten(0, self.read_BT.shape).to(new_BSW.dtype)


class Within(NamedTuple):
    """No past, and less than causal attention to the given tokens: documents of a row that do not see each other.

    Attributes:
        mask_ST: True where a query may look, [B, 1, S, S].
        position_BS: of the tokens; None where they stand behind each other from 0 on.
    """

    mask_ST: Tensor
    position_BS: Tensor | None = None

    @classmethod
    def documents(cls, document_BS: Tensor) -> "Within":
        """Let a query see its own document up to itself."""
        length = document_BS.shape[1]
        same_BST = document_BS[:, :, None] == document_BS[:, None, :]
        causal_ST = torch.ones(length, length, dtype=torch.bool, device=document_BS.device).tril()
        return cls((same_BST & causal_ST).unsqueeze(1))

    def first(self, rows: int) -> "Within":
        """Return the same for the first rows."""
        position_BS = None if self.position_BS is None else self.position_BS[:, :rows]
        return Within(self.mask_ST[..., :rows, :rows], position_BS)

    def at(self, layer: int) -> "Within":
        """Return itself: every layer sees the same."""
        return self

    def append(self, new_BSW: Tensor) -> Tensor:
        """Return the new tokens' latents, which are all there is."""
        return new_BSW


class LatentCache:
    """Rows of a store: of each the blocks that hold it, in order, and its length.

    Attributes:
        tables: one sequence of block numbers a row. The kernel reads an `array("q")` where it lies, others are copied.
    """

    def __init__(
        self,
        store: LatentStore,
        tables: Sequence[Sequence[int]],
        lengths: Sequence[int] | None = None,
        *,
        first_layer: int = 0,
    ) -> None:
        """Name the rows; `lengths` defaults to 0 each, `first_layer` is where layer 0 lies in the store."""
        self.store, self.tables, self.first_layer = store, tables, first_layer
        self.lengths = [0] * len(tables) if lengths is None else list(lengths)

    @classmethod
    def dense(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "LatentCache":
        """Allocate `batch` empty rows of `capacity` tokens each: one block a row.

        Raises:
            ValueError: a size below 1.
        """
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache needs batch={batch} and capacity={capacity} of at least 1")
        store = LatentStore(config, batch, capacity, layers=layers, dtype=dtype, device=device)
        return cls(store, [array("q", [row]) for row in range(batch)])

    def module(self, depth: int, lengths: Sequence[int] | None = None) -> "LatentCache":
        """Return the rows of the MTP module of a depth (from 0): same store and tables, lengths of their own.

        Raises:
            ValueError: the store was allocated without that layer.
        """
        layer, layers = self.store.main_layers + depth, len(self.store.latent_LPTW)
        if layer >= layers:
            raise ValueError(f"the store has {layers} layers: none for module {depth}, which is layer {layer}")
        return LatentCache(self.store, self.tables, lengths, first_layer=layer)

    def rows(self, which: Sequence[int]) -> "LatentCache":
        """Return some of the rows; their lengths are copies."""
        tables, lengths = [self.tables[row] for row in which], [self.lengths[row] for row in which]
        return LatentCache(self.store, tables, lengths, first_layer=self.first_layer)

    @property
    def capacity(self) -> int:
        """Tokens that every row has room for."""
        return min(map(len, self.tables)) * self.store.block_size

    def layer(self, index: int) -> Tensor:
        """All blocks of one layer, [n_blocks, block_size, C + R]."""
        return self.store.latent_LPTW[self.first_layer + index]

    def check_room(self, counts: Sequence[int]) -> None:
        """Refuse new tokens that do not fit.

        Raises:
            ValueError: as many counts as rows are needed, and room in each row.
        """
        if len(counts) != len(self.tables):
            raise ValueError(f"{len(counts)} rows of tokens for a cache of {len(self.tables)} rows")
        size = self.store.block_size
        for table, length, count in zip(self.tables, self.lengths, counts):
            if length + count > len(table) * size:
                raise ValueError(
                    f"{length} cached + {count} new tokens exceed the cache's capacity of {len(table) * size}"
                )

    def positions(self, count: int) -> Tensor:
        """Positions of the next `count` tokens: [S] when all rows are equally long, else [B, S]."""
        device, longest = self.store.latent_LPTW.device, max(self.lengths)
        if min(self.lengths) == longest:
            return torch.arange(longest, longest + count, device=device)
        start_B = torch.tensor(self.lengths, device=device)
        return start_B[:, None] + torch.arange(count, device=device)

    def place(self, count: int, counts: Sequence[int] | None = None) -> Past:
        """Find the slots of the next `count` tokens a row, of which `counts` are real: all of them by default.

        Raises:
            ValueError: they do not fit.
        """
        counts = [count] * len(self.lengths) if counts is None else counts
        self.check_room(counts)
        store, device = self.store, self.store.latent_LPTW.device
        longest, size = max(map(len, self.tables)), store.block_size
        table_BK = torch.tensor([[*table, *[0] * (longest - len(table))] for table in self.tables], device=device)

        def slots(position_BT: Tensor) -> Tensor:
            block_BT = (position_BT // size).clamp_max(longest - 1)  # of padding: anywhere, nobody looks
            return table_BK.gather(1, block_BT) * size + position_BT % size

        new_S, start_B = torch.arange(count, device=device), torch.tensor(self.lengths, device=device)
        real_N = (new_S < torch.tensor(counts, device=device)[:, None]).flatten()
        from_M = real_N.nonzero().flatten()
        to_M = slots(start_B[:, None] + new_S).flatten()[from_M]
        seen = max(length + n for length, n in zip(self.lengths, counts))
        dense = longest == 1 and [table[0] for table in self.tables] == list(range(store.n_blocks))
        read_BT = None if dense else slots(torch.arange(seen, device=device).expand(len(counts), -1))
        return Past(self, None, from_M, to_M, read_BT, seen)

    def advance(self, counts: int | Sequence[int]) -> None:
        """Count the tokens that every layer has appended: as many for every row, or as many as each has."""
        counts = [counts] * len(self.lengths) if isinstance(counts, int) else counts
        self.lengths = [length + n for length, n in zip(self.lengths, counts)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what lies beyond the given lengths: padding, or drafts that were rejected.

        Raises:
            ValueError: a length that the row does not have.
        """
        if len(lengths) != len(self.lengths) or any(not 0 <= n <= have for n, have in zip(lengths, self.lengths)):
            raise ValueError(f"cannot truncate rows of lengths {self.lengths} to {lengths}")
        self.lengths = list(lengths)
