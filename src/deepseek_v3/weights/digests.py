"""SHA-256 of files in pieces, so that all cores share one large file.

A thread takes some pieces at a time where a kernel can (`native/sha256.cpp`): two that fill each other's waits, or
sixteen in the lanes of its vectors, whichever the processor does faster.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from deepseek_v3.native.build import ask_kernel, have_kernels, run_kernel
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.memory_map import ask_for_huge_pages, bring_in, map_bytes

PIECE_BYTES = 2**22
MAPPED_BYTES = 2**24  # the longest piece of a manifest; a whole file (format 1) may be longer, and is streamed
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


def pieces_at_a_time() -> int:
    """How many pieces one thread digests together."""
    return max(ask_kernel("sha256_lanes"), 1) if have_kernels() else 1


def group_up(pieces: Sequence[Item]) -> list[Sequence[Item]]:
    """Neighbours, as many as a thread takes at a time; fewer where some threads would have none."""
    count = max(min(pieces_at_a_time(), -(-len(pieces) // torch.get_num_threads())), 1)
    return [pieces[i : i + count] for i in range(0, len(pieces), count)]


def digest_pieces(pieces: Sequence[Piece]) -> list[str]:
    """The SHA-256 of each piece, on all cores."""
    groups = run_jobs([lambda group=group: digest_group(group) for group in group_up(pieces)])
    return [digest for group in groups for digest in group]


def map_piece(piece: Piece) -> torch.Tensor:
    """Bring the bytes in, and show them without copying them."""
    content = map_bytes(piece.path, piece.start, piece.n_bytes)
    ask_for_huge_pages(content)
    bring_in(content)
    return content


def digest_group(pieces: Sequence[Piece], show: Callable[[Piece], torch.Tensor] = map_piece) -> list[str]:
    """The SHA-256 of a group's pieces, by one thread; `show` may give bytes that are mapped already."""
    mappable = all(0 < piece.n_bytes <= MAPPED_BYTES for piece in pieces)
    if not mappable or not 1 < len(pieces) <= pieces_at_a_time():
        return [digest_stream(piece) for piece in pieces]
    shown = [show(piece) for piece in pieces]
    address, n_bytes = (torch.tensor(numbers) for numbers in zip(*[(x.data_ptr(), len(x)) for x in shown]))
    digests = torch.empty(len(pieces), 32, dtype=torch.uint8)
    run_kernel("sha256_pieces", address, n_bytes, digests, len(pieces))
    return [bytes(digest).hex() for digest in digests.numpy()]


def digest_stream(piece: Piece) -> str:
    """The SHA-256 of a piece of any length, read 1 MB at a time."""
    hasher, buffer, left = hashlib.sha256(), memoryview(bytearray(READ_BYTES)), piece.n_bytes
    with piece.path.open("rb", buffering=0) as stream:
        stream.seek(piece.start)
        while left and (n := stream.readinto(buffer[: min(left, READ_BYTES)])):
            hasher.update(buffer[:n])
            left -= n
    return hasher.hexdigest()
