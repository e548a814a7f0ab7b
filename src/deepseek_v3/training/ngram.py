"""The model to beat: a byte-level n-gram with interpolated Kneser-Ney smoothing, counted with sorting.

    P_k(b | c_k) = max(n(c_k b) - d_k, 0) / n(c_k .) + d_k u(c_k .) / n(c_k .) P_{k-1}(b | c_{k-1})     P_0 = 1 / 256

`c_k` are the k - 1 bytes before b; `u(c .)` counts the different bytes that followed c. At the highest order n counts
occurrences, below it in how many different contexts (one byte longer) they occurred. d_k = n1 / (n1 + 2 n2), from the
number of events seen once and twice (Ney, Essen and Kneser 1994).

    model = ByteNgram(texts, order=5); model.bits_per_byte(heldout_texts)
"""

from collections.abc import Sequence

import numpy as np

BYTES = 256
MAX_ORDER = 7  # an event of 7 bytes fills 56 bits of a 64-bit key, one more is the sign


class ByteNgram:
    """Sorted event tables of the orders 1 to n."""

    def __init__(self, texts: Sequence[str], order: int = 5) -> None:
        """Count.

        Raises:
            ValueError: an order outside 1..7, or no text.
        """
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order={order} must be 1 to {MAX_ORDER}: an event is one 64-bit key")
        self.order = order
        events = np.concatenate([_event_keys(_as_bytes(text), order) for text in texts] or [np.empty(0, np.int64)])
        if not len(events):
            raise ValueError("there is no text to count")
        keys, counts = np.unique(events, return_counts=True)
        self._tables: list[_Order] = []
        for length in range(order, 0, -1):
            self._tables.insert(0, _Order(keys, counts))
            shorter = keys & ((1 << (8 * (length - 1))) - 1)  # the oldest byte falls off: one context, one count
            keys, counts = np.unique(shorter, return_counts=True)

    def probabilities(self, text: str) -> np.ndarray:
        """Return the probability of every byte of a text given the bytes before it."""
        data = _as_bytes(text)
        probability = np.full(len(data), 1 / BYTES)
        events = _event_keys(data, self.order)
        for length, table in enumerate(self._tables, 1):
            probability = table.interpolate(events & ((1 << (8 * length)) - 1), probability)
        return probability

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Return the mean of -log2 P over every byte of the texts."""
        bits = sum(float(-np.log2(self.probabilities(text)).sum()) for text in texts)
        return bits / sum(len(_as_bytes(text)) for text in texts)


class _Order:
    """Events of one length: keys, counts, and the totals of their contexts."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self.keys, self.counts = keys, counts
        self.contexts, first = np.unique(keys >> 8, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.kinds = np.diff(np.append(first, len(keys)))
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        self.discount = once / (once + 2 * twice) if once and twice else 0.5

    def interpolate(self, events: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return P of this order where the context is known, else the lower order's."""
        place, known = _find(self.contexts, events >> 8)
        event_place, seen = _find(self.keys, events)
        count = np.where(seen, self.counts[event_place], 0)
        total = self.totals[place]
        mixed = (np.maximum(count - self.discount, 0) + self.discount * self.kinds[place] * lower) / total
        return np.where(known, mixed, lower)


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return place, table[place] == wanted


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)


def _event_keys(data: np.ndarray, order: int) -> np.ndarray:
    """Return for each byte the key of itself and the order - 1 bytes before it (zeros before the text)."""
    keys = np.zeros(len(data), np.int64)
    for back in range(min(order, len(data))):
        keys[back:] |= data[: len(data) - back].astype(np.int64) << (8 * back)
    return keys
