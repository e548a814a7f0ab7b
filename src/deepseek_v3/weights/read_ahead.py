"""Ask the system for bytes of files before they are needed, so that a disk works while we compute.

One request of ours is cut by the system to what it reads ahead at most, so many small ones keep a disk's queue full:
on a disk that read 1.1 GB/s for one reader, they brought 2.
"""

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

REQUEST_BYTES = 2**19
STRETCH_BYTES = 2**24
AHEAD_BYTES = 2**27


def ask_for(path: Path, start: int, stop: int) -> None:
    """Have the system read some bytes of a file into its cache; return at once. It is a mere wish."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb", buffering=0) as stream:
            for at in range(start, stop, REQUEST_BYTES):
                os.posix_fadvise(stream.fileno(), at, min(REQUEST_BYTES, stop - at), os.POSIX_FADV_WILLNEED)


class ReadAhead:
    """Stay 128 MB ahead of whoever goes through the files, which are used in the order given."""

    def __init__(self, files: Iterable[Path]):
        self._offset: dict[Path, int] = {}  # of each file, in all of them put together
        self._stretches: deque[tuple[int, Path, int, int]] = deque()
        self._lock = Lock()
        total = 0
        for path in files:
            n_bytes = path.stat().st_size
            self._offset[path] = total
            for start in range(0, n_bytes, STRETCH_BYTES):
                self._stretches.append((total + start, path, start, min(start + STRETCH_BYTES, n_bytes)))
            total += n_bytes

    def reach(self, path: Path, position: int) -> None:
        """Say that the bytes of `path` before `position` are in use now."""
        if not self._lock.acquire(blocking=False):
            return  # another thread is asking already
        try:
            while self._stretches and self._stretches[0][0] < self._offset[path] + position + AHEAD_BYTES:
                ask_for(*self._stretches.popleft()[1:])
        finally:
            self._lock.release()
