"""SHA-256 of files in pieces, so that all cores share one large file.

A thread takes two pieces at a time where a kernel can (`native/sha256.cpp`): the two digests fill each other's waits,
at twice the rate of one.
"""

import hashlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from deepseek_v3.native.build import have_kernels, run_kernel
from deepseek_v3.weights.jobs import run_jobs

PIECE_BYTES = 2**24
READ_BYTES = 2**20
Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file."""

    path: Path
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


def cut_file(path: Path, n_bytes: int, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of a file of `n_bytes`, in their order; an empty file is one piece."""
    starts = range(0, max(n_bytes, 1), piece_bytes)
    return [Piece(path, start, min(start + piece_bytes, n_bytes)) for start in starts]


def pair_up(pieces: Sequence[Item]) -> list[Sequence[Item]]:
    """Neighbours in twos, a last one alone."""
    return [pieces[i : i + 2] for i in range(0, len(pieces), 2)]


def digest_pieces(pieces: Sequence[Piece]) -> list[str]:
    """The SHA-256 of each piece, on all cores."""
    pairs = run_jobs([lambda pair=pair: digest_pair(pair) for pair in pair_up(pieces)])
    return [digest for pair in pairs for digest in pair]


def map_piece(piece: Piece) -> torch.Tensor:
    """Show the bytes without copying them."""
    with piece.path.open("rb") as stream:
        # A private mapping is writable memory to PyTorch, though nothing writes there.
        mapped = mmap.mmap(stream.fileno(), piece.n_bytes, access=mmap.ACCESS_COPY, offset=piece.start)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def digest_pair(pieces: Sequence[Piece], show: Callable[[Piece], torch.Tensor] = map_piece) -> list[str]:
    """The SHA-256 of one or two pieces, by one thread; `show` may give bytes that are mapped already."""
    mappable = all(0 < piece.n_bytes <= PIECE_BYTES for piece in pieces)
    if len(pieces) == 2 and mappable and have_kernels():
        served, digests = torch.zeros(1, dtype=torch.int64), torch.empty(2, 32, dtype=torch.uint8)
        first, second = map(show, pieces)
        run_kernel("sha256_pair", first, len(first), second, len(second), digests, served)
        if served.item():
            return [bytes(digest.tolist()).hex() for digest in digests]
    return [digest_stream(piece) for piece in pieces]


def digest_stream(piece: Piece) -> str:
    """The SHA-256 of a piece of any length, read 1 MB at a time."""
    hasher, buffer, left = hashlib.sha256(), memoryview(bytearray(READ_BYTES)), piece.n_bytes
    with piece.path.open("rb", buffering=0) as stream:
        stream.seek(piece.start)
        while left and (n := stream.readinto(buffer[: min(left, READ_BYTES)])):
            hasher.update(buffer[:n])
            left -= n
    return hasher.hexdigest()
