"""Standard output that may close or be full: the telling stops, what is told of goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def lead_nowhere(stream: Any) -> None:
    """Let what a stream still holds, and all that follows, go nowhere: nothing fails at the very end."""
    with suppress(OSError, ValueError):
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, stream.fileno())
        os.close(silent)


def drop_output() -> None:
    """Drop what standard output could not take."""
    lead_nowhere(sys.stdout)


class SteadyStream:
    """A text stream that takes everything: once its file fails, the rest is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is held."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._fall_silent()

    def _fall_silent(self) -> None:
        lead_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing_streams() -> None:
    """Give a process that was started with a closed standard stream one that goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as the process


@contextmanager
def steady_output() -> Iterator[None]:
    """Keep a closed or full standard output or error from ending what runs."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SteadyStream(kept[0]), SteadyStream(kept[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept
