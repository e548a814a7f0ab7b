"""Files mapped into memory: shown without copying, brought in ahead of their use, and let go.

How a disk is asked matters more than when. Asked by `posix_fadvise` or `readahead`, Linux fills its cache in pages of
4 KB, whatever the file system could do, and that is as much work as verifying the bytes. A fault in a mapping that
wants huge pages is served by one read of 2 MB, into one page where the file system can, and mapped in one step.
"""

import ctypes
import itertools
import mmap
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

STRETCH_BYTES = 2**24
AHEAD_BYTES = 2**27
THREADS = 2
HUGE_PAGE_BYTES = 2**21
MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14  # of Linux
MADV_POPULATE_READ = 22  # of Linux, from 5.14 on


def map_bytes(path: Path, start: int, n_bytes: int) -> Tensor:
    """Show some bytes of a file, at least one, without reading them; `start` is a multiple of a page."""
    with path.open("rb") as stream:
        # A private mapping is writable memory to PyTorch, though nothing here writes; the file never changes.
        mapped = mmap.mmap(stream.fileno(), n_bytes, access=mmap.ACCESS_COPY, offset=start)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def ask_for_huge_pages(memory: Tensor) -> None:
    """Have memory mapped 2 MB at a time where the system can: by 4 KB, mapping takes longer than reading."""
    start = -(-memory.data_ptr() // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    length = (memory.data_ptr() + memory.nbytes - start) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    if sys.platform == "linux" and length > 0:
        _advise(start, length, MADV_HUGEPAGE)


def bring_in(mapped: Tensor) -> None:
    """Return when these bytes of a mapped file are in memory and in the page table."""
    start = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = mapped.data_ptr() + mapped.nbytes - start
    if sys.platform != "linux" or not _advise(start, length, MADV_POPULATE_READ):
        _advise(start, length, MADV_WILLNEED)  # returns at once


def let_go(mapped: Tensor) -> None:
    """Have the system forget the pages of a mapped file read so far (they count as this process's memory)."""
    _advise(mapped.data_ptr(), mapped.nbytes, MADV_DONTNEED)


def _advise(start: int, length: int, advice: int) -> bool:
    """A mere wish: whether it is granted changes no byte. Unlike mmap's own method it leaves the interpreter free."""
    return sys.platform != "win32" and not ctypes.CDLL(None).madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(length), advice
    )


class ReadAhead:
    """Stay 128 MB ahead of whoever goes through mapped files, in the order given; a context manager.

    Two threads that do nothing else touch them: whoever comes after neither waits nor faults.
    """

    def __init__(self, files: Mapping[Path, Tensor]):
        ends = list(itertools.accumulate(len(content) for content in files.values()))
        self._offset = dict(zip(files, [0, *ends]))  # of each file, in all of them put together
        self._left = self._cut(files)
        self._reached, self._stopped = 0, False
        self._change = threading.Condition()
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(THREADS)]

    def __enter__(self) -> "ReadAhead":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def reach(self, path: Path, position: int) -> None:
        """Say that the bytes of `path` before `position` are in use now; of another file it says nothing."""
        if path in self._offset:
            with self._change:
                self._reached = max(self._reached, self._offset[path] + position)
                self._change.notify_all()

    def _cut(self, files: Mapping[Path, Tensor]) -> Iterator[tuple[int, Tensor]]:
        for path, content in files.items():
            ask_for_huge_pages(content)
            for start in range(0, len(content), STRETCH_BYTES):
                yield self._offset[path] + start, content[start : start + STRETCH_BYTES]

    def _read(self) -> None:
        while True:
            with self._change:
                at, part = next(self._left, (0, None))
                self._change.wait_for(lambda at=at: self._stopped or at < self._reached + AHEAD_BYTES)
                if part is None or self._stopped:
                    return
            bring_in(part)
