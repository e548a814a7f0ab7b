"""Documents as tokens, each encoded once, at its first reading, into a memory-mapped file.

The file has no name: it is gone with the process, however that ends. Encoding when a document is first wanted starts a
training at once, and costs as much in all as encoding everything before. A disk without room costs time, not the
training: what cannot be kept is encoded again in the next pass.
"""

import logging
import mmap
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from deepseek_v3.data.documents import open_nameless
from deepseek_v3.data.tokenizer import Tokenizer

FIRST_BYTES = 2**24


class TokenCache:
    """bos, the tokens, eos of each of some texts."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, folder: str | Path | None = None) -> None:
        self._texts, self._tokenizer, self._folder = texts, tokenizer, folder
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._starts, self._sizes = np.full(len(texts), -1, np.int64), np.zeros(len(texts), np.int64)
        self._file: FileIO | None = None
        self._map: mmap.mmap | None = None
        self._end, self._full = 0, False

    def document(self, index: int) -> np.ndarray:
        """Return the tokens of a document."""
        start, size = int(self._starts[index]), int(self._sizes[index])
        if start < 0 or self._map is None:
            return self._encode(index)
        return np.frombuffer(self._map, self._dtype, size, start)

    def _encode(self, index: int) -> np.ndarray:
        ids = self._tokenizer.encode(self._texts[index])
        tokens = np.array([self._tokenizer.bos_id, *ids, self._tokenizer.eos_id], self._dtype)
        if not self._full:
            try:
                self._keep(index, tokens)
            except OSError as error:
                self._full = True
                logging.getLogger(__name__).warning(
                    "no room to keep tokens (%s); from here on they are encoded in every pass", error.strerror
                )
        return tokens

    def _keep(self, index: int, tokens: np.ndarray) -> None:
        if self._file is None:
            self._file = open_nameless(self, self._folder)
        end = self._end + tokens.nbytes
        if self._map is None or end > len(self._map):
            length = max(FIRST_BYTES, 2 * end)
            os.ftruncate(self._file.fileno(), length)  # a hole: takes room as it is written
            self._map = mmap.mmap(self._file.fileno(), length, prot=mmap.PROT_READ)
        data, place = memoryview(tokens.tobytes()), self._end
        while data:
            written = os.pwrite(self._file.fileno(), data, place)
            data, place = data[written:], place + written
        self._starts[index], self._sizes[index], self._end = self._end, len(tokens), end
