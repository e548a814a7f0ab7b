"""The pool of cache blocks: who holds which, and which hold a prefix that another request may share.

    key of block j = digest(key of block j - 1, its tokens)         equal keys, equal tokens from the very beginning

MTP modules read `ahead` tokens further than the main model: their rows in a block depend on tokens of the next one, so
these are part of its key.

A block that nobody holds stays findable by its key until it is needed for something else, the longest unused first.

Letters: none; a block is a number below n_blocks.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


class BlockPool:
    """Blocks by number; what they hold lies in the store.

    Attributes:
        holders: how many sequences hold each block.
        free: the blocks that nobody holds, the longest unused first.
        found: the block that holds a prefix, by its key.
    """

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks, self.block_size = n_blocks, block_size
        self.holders = [0] * n_blocks
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(n_blocks))
        self.found: dict[bytes, int] = {}
        self.keys: list[bytes | None] = [None] * n_blocks

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def key_of(self, before: bytes, tokens: Sequence[int], block: int, ahead: int) -> bytes:
        """Return the key of a full block, given the key of the one before it."""
        start, end = block * self.block_size, (block + 1) * self.block_size
        return blake2b(array("q", tokens[start : end + ahead]).tobytes(), key=before, digest_size=16).digest()

    def match_prefix(self, tokens: Sequence[int], root: bytes = b"", ahead: int = 0) -> list[int]:
        """Return the blocks that hold the longest known beginning of the tokens; they are not yet taken.

        Args:
            root: where the keys begin: another root, other latents.
            ahead: how many tokens behind a block its latents depend on.
        """
        blocks: list[int] = []
        key = root
        for block in range((len(tokens) - ahead) // self.block_size):
            key = self.key_of(key, tokens, block, ahead)
            if key not in self.found:
                break
            blocks.append(self.found[key])
        return blocks

    def can_take(self, shared: Iterable[int], more: int) -> bool:
        """Whether the shared blocks and so many others can be held together."""
        return more + sum(self.holders[block] == 0 for block in shared) <= len(self.free)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that were found by their prefix."""
        for block in blocks:
            self.holders[block] += 1
            self.free.pop(block, None)

    def allocate(self, count: int) -> list[int]:
        """Hold so many blocks that nobody holds; what they held is forgotten.

        Raises:
            ValueError: there are fewer; ask `can_take` first.
        """
        if count > len(self.free):
            raise ValueError(f"{count} blocks asked for, {len(self.free)} of {self.n_blocks} are free")
        blocks = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self.holders[block] = 1
        self.forget(blocks)
        return blocks

    def register(self, block: int, key: bytes) -> None:
        """Let others find a full block; of two with the same prefix the first one is found."""
        if self.keys[block] is None and key not in self.found:
            self.keys[block], self.found[key] = key, block

    def forget(self, blocks: Iterable[int]) -> None:
        """Let nobody find these blocks any more."""
        for block in blocks:
            key = self.keys[block]
            if key is not None:
                self.keys[block] = None
                del self.found[key]

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks; its last ones are the first to be used for something else."""
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self.free[block] = None

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Compare with the tables of all sequences: every block is free or held, as often as tables name it.

        Raises:
            AssertionError: a block that leaked, is held twice by one sequence, or is free and in use.
        """
        counts = [0] * self.n_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a sequence holds a block twice: {table}"
            for block in table:
                counts[block] += 1
        assert counts == self.holders, f"held {self.holders}, in tables {counts}"
        assert set(self.free) == {b for b, n in enumerate(counts) if n == 0}, "free is not what nobody holds"
        assert {b: k for k, b in self.found.items()} == {b: k for b, k in enumerate(self.keys) if k is not None}
