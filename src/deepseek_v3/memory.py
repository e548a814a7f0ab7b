"""Will it fit: the memory that a model needs against what this machine has left."""

from pathlib import Path

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USE = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


class MemoryShort(ValueError):
    """A model that does not fit; the message has the bytes needed and there."""


def available_bytes() -> int | None:
    """Return what a process can still take, or None where the system does not say."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for limit, used in zip(CGROUP_LIMITS, CGROUP_USE):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found) if found else None


def check_memory(what: str, needed: int) -> None:
    """Refuse what does not fit.

    Raises:
        MemoryShort: with the bytes needed and there.
    """
    there = available_bytes()
    if there is not None and needed > there:
        raise MemoryShort(f"{what} needs {needed:,} bytes of memory, {there:,} are free; take a smaller one")
