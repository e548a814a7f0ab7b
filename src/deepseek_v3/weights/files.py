"""A small file that is replaced as one: written beside, flushed to disk, renamed."""

import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, data: bytes) -> bool:
    """Write a file so that a kill or a full disk at any moment leaves the old one or the new one.

    Returns:
        whether anything was written: a file that already holds the bytes is left alone.
    Raises:
        OSError: the old file then still stands, and nothing lies beside it.
    """
    with suppress(OSError):
        if path.read_bytes() == data:
            return False
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    flush_path(path.parent)
    return True


def flush_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
