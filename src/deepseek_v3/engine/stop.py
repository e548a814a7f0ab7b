"""Text as it comes: tokens in, whole characters out, and never a part of a stop text."""

from typing import Protocol


class TokenStream(Protocol):
    """Makes text of tokens that come one by one: `Tokenizer.stream()`."""

    def push(self, token: int) -> str:
        """Return the text that this token completes."""
        ...

    def finish(self) -> str:
        """Return what was left."""
        ...


class TextGate:
    """The text of one sequence, from its tokens.

    Attributes:
        shown: what may be shown and has not been taken.
    """

    def __init__(self, stream: TokenStream, stops: tuple[str, ...]) -> None:
        self.stream, self.gate, self.shown = stream, StopGate(stops), ""

    def push(self, token: int) -> bool:
        """Let a token's text through; return whether a stop text has come."""
        self.shown += self.gate.push(self.stream.push(token))
        return self.gate.stopped

    def take(self, *, last: bool) -> str:
        """Return what may be shown now; at last also what was held back."""
        if last:
            self.shown += self.gate.push(self.stream.finish()) + self.gate.finish()
        shown, self.shown = self.shown, ""
        return shown


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
