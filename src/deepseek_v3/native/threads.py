"""How many threads serve, and how they wait for each other: by what other processes leave free.

    choose_waiting()                       when the package is imported, before PyTorch is
    threads_now(torch.get_num_threads())   before each decoding step

A thread that sleeps is late by up to some tenths of a millisecond, hundreds of times a step; one that spins burns the
time that another process needs. GNU OpenMP by itself spins for many milliseconds, which beside busy processes makes a
step ten times as long. It reads the environment once, so this must be chosen before PyTorch is imported. And a thread
that shares its core with a busy process keeps all others waiting: then fewer threads are faster. Figures stand in
docs/decisions.md.
"""

import math
import os
import sys
import time
from contextlib import suppress

FEW_CORES = 0.4  # in use by others: fewer, and no thread of ours stands in anybody's way
SPINS = 20_000  # about a millisecond
LOOK_AGAIN_S = 0.1  # ten ticks of the system's clock: shorter, and it could not tell
FORGET_AFTER_S = 0.3  # what others did before that says little of now


def choose_waiting() -> None:
    """Let threads that wait for each other spin for a while if cores are free, else sleep at once.

    What the environment says already stands. After PyTorch is imported this changes nothing.
    """
    if "OMP_WAIT_POLICY" in os.environ or "torch" in sys.modules:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if others_running() < 1:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def describe_waiting() -> str:
    """Say how threads of PyTorch's pool wait for each other."""
    policy, spins = os.environ.get("OMP_WAIT_POLICY", "not set"), os.environ.get("GOMP_SPINCOUNT")
    return f"OMP_WAIT_POLICY {policy}" + (f", then asleep after GOMP_SPINCOUNT {spins}" if spins else "")


def threads_now(asked: int) -> int:
    """Return how many of `asked` threads are worth it: as many as there are cores that nobody else keeps busy."""
    if asked == 1:
        return 1
    return max(1, min(asked, math.floor(len(usable_cores()) - _watch.others() + FEW_CORES)))


def usable_cores() -> set[int]:
    """Return the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores_in_use(seconds: float = 0.1) -> float:
    """How many cores other processes keep busy, seen while this one sleeps; infinite where the system does not say."""
    try:
        before = _read_ticks()
        time.sleep(seconds)
        return _busy_cores(before, _read_ticks())
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return math.inf


def others_running(samples: int = 4) -> float:
    """How many threads of other processes run just now, as far as the system says; the least of some moments."""
    least = math.inf
    for sample in range(samples):
        if sample:
            time.sleep(0.0005)
        try:
            with open("/proc/loadavg") as stream:
                running = int(stream.readline().split()[3].split("/")[0])
            least = min(least, max(0, running - _own_running()))
        except (OSError, ValueError, IndexError):
            return math.inf
    return least


def _own_running() -> int:
    """Threads of this process that run just now: of PyTorch's pool some still spin, and are no neighbours."""
    running = 0
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/stat") as stream:
            running += stream.read().rpartition(")")[2].split()[0] == "R"
    return running


class _Watch:
    """The cores that others keep busy, from one look at the system's clocks to the next."""

    def __init__(self) -> None:
        self.last: tuple[float, float, list[int]] | None = None  # when, this process's own time, everybody's
        self.busy = 0.0

    def others(self) -> float:
        """Look again if the last look is some time ago; 0 where the system does not say."""
        now = time.monotonic()
        if self.last is not None and now - self.last[0] < LOOK_AGAIN_S:
            return self.busy
        try:
            latest = now, time.process_time(), _read_ticks()
            if self.last is None or now - self.last[0] > FORGET_AFTER_S:
                self.busy = others_running(1)
            else:
                own = (latest[1] - self.last[1]) / (now - self.last[0])
                nice = os.getpriority(os.PRIO_PROCESS, 0) > 0  # who is nicer than we are does not stand in our way
                self.busy = max(0.0, _busy_cores(self.last[2], latest[2], with_nice=nice) - own)
            self.last = latest
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            self.busy = 0.0
        return 0.0 if self.busy == math.inf else self.busy


_watch = _Watch()


def _busy_cores(before: list[int], after: list[int], *, with_nice: bool = True) -> float:
    spent = [later - earlier for earlier, later in zip(before, after)]
    free = spent[3] + spent[4] + (0 if with_nice else spent[1])
    return len(usable_cores()) * (1 - free / sum(spent))


def _read_ticks() -> list[int]:
    """Time of the usable cores so far: user, nice, system, idle, waiting for a disk, two of interrupts, stolen."""
    names = {f"cpu{core}" for core in usable_cores()}
    with open("/proc/stat") as stream:
        lines = [line.split() for line in stream if line.startswith("cpu")]
    return [sum(map(int, times)) for times in list(zip(*(line for line in lines if line[0] in names)))[1:9]]
