"""How threads wait for each other: looking, or asleep.

A thread that sleeps is late by up to some tenths of a millisecond, hundreds of times a step; one that looks burns the
time that another process needs. GNU OpenMP by itself looks for many milliseconds, which beside busy processes makes a
step ten times as long. It reads the environment once, so this must be chosen before PyTorch is imported. Figures stand
in docs/decisions.md.
"""

import math
import os
import time

FEW_CORES = 0.5  # in use by others: fewer, and no thread of ours stands in anybody's way
LOOKS = 20_000  # about a millisecond


def choose_waiting() -> None:
    """Let threads that wait for each other look for a while if cores are free, else sleep at once.

    What the environment says already stands. After PyTorch is imported this changes nothing.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if cores_in_use() < FEW_CORES:
        os.environ.setdefault("GOMP_SPINCOUNT", str(LOOKS))


def cores_in_use(seconds: float = 0.1) -> float:
    """How many cores other processes keep busy, seen while this one sleeps; infinite where the system does not say."""
    try:
        before = _read_ticks()
        time.sleep(seconds)
        spent = [later - earlier for earlier, later in zip(before, _read_ticks())]
        return (os.cpu_count() or 1) * (1 - (spent[3] + spent[4]) / sum(spent))
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return math.inf


def _read_ticks() -> list[int]:
    """Time of all cores together so far: user, nice, system, idle, waiting for a disk, two of interrupts, stolen."""
    with open("/proc/stat") as stream:
        return [int(number) for number in stream.readline().split()[1:9]]
