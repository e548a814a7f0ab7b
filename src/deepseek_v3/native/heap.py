"""What the C library does with freed memory: by default it goes back to the system, and comes again page by page."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # numbers of mallopt's parameters, from malloc.h


def keep_freed_memory() -> bool:
    """Tell the GNU C library to keep what is freed, for the rest of the process.

    By default large blocks go back to the system, and the next step pays for mapping every page anew: a part
    of every training step. What the environment says of the allocator already stands.

    Returns:
        Whether it does: False where there is no such library, or the user has chosen (MALLOC_..._, GLIBC_TUNABLES).
    """
    if users_choice():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))  # -1: never, however much is free


def users_choice() -> str:
    """Name the variable of the environment by which the user has chosen how memory is kept; empty if there is none."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"):
        if name in os.environ:
            return name
    return "GLIBC_TUNABLES" if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") else ""
