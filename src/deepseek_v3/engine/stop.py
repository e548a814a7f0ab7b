"""Stop texts: let text through as it comes, but never a part of what ends it."""


class StopGate:
    """Let text through, but hold back an ending that may still become a stop text.

    Attributes:
        stopped: whether a stop text has come; what follows it is dropped.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.held, self.stopped = [s for s in stops if s], "", False

    def push(self, text: str) -> str:
        """Return what of all text so far can be shown now."""
        if self.stopped:
            return ""
        self.held += text
        ends = [at for at in (self.held.find(stop) for stop in self.stops) if at >= 0]
        if ends:
            self.stopped = True
            return self._release(min(ends))
        unsure = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        return self._release(len(self.held) - unsure)

    def finish(self) -> str:
        """Return what was held back, once nothing more can come."""
        return "" if self.stopped else self._release(len(self.held))

    def _release(self, count: int) -> str:
        shown, self.held = self.held[:count], self.held[count:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
