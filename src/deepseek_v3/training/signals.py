"""A polite way to be stopped: SIGTERM and Ctrl-C set a flag that the training loop reads between micro-batches."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is remembered; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name = ""
        self._kept: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._kept[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._kept = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
