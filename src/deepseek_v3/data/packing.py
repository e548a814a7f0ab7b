"""Documents to training rows: fill-in-the-middle, packing, and a cursor that can be put down and taken up.

    [bos] document [eos] [bos] document [eos] ...        cut into rows of S + 1 tokens

Each row starts with the last token of the row before, so that every token is a target once; `documents` says which
document each token belongs to.

As in the report, documents are packed without an attention mask between them; a label is kept only where the row and
its target lie in one document (see `training/loss.py`).

Source: arXiv:2412.19437, section 4.1 (packing, prefix-suffix-middle at rate 0.1).       Letters: B batch, S positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepseek_v3.data.documents import DataError, identify_texts
from deepseek_v3.data.token_cache import TokenCache
from deepseek_v3.data.tokenizer import FIM_HOLE, Tokenizer

ORDERS_KEPT = 3  # lanes end one pass while others are in the next
SHORTEST_MOVED = 3  # characters of a document that fill-in-the-middle can cut


@dataclass(frozen=True)
class Batch:
    """Rows of S + 1 tokens: the first S are read, the last S are the main targets."""

    tokens: torch.Tensor  # int64 [B, S + 1]
    documents: torch.Tensor  # int64 [B, S + 1]: the running number of the document of each token
    section: Any = None  # of every row, where several processes share it: model/section.py

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "Batch":
        """Return some rows."""
        return Batch(self.tokens[start:stop], self.documents[start:stop], self.section)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return Batch(self.tokens.to(device), self.documents.to(device), self.section)


class PackedStream:
    """An endless, shuffled, packed stream of documents; its whole state is a few integers.

    Rows come from `lanes` in turn, each lane reading its own document, so that the rows of one batch are of different
    documents however long these are. Pass e over the documents has an order drawn from (seed, e); the cut of a
    document for fill-in-the-middle is drawn from (seed, e, document): a stream taken up from `state_dict` gives the
    same rows, bit by bit.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        seq_len: int,
        *,
        seed: int = 0,
        fim_rate: float = 0.0,
        lanes: int = 32,
        scratch: str | Path | None = None,
    ) -> None:
        """Prepare a stream at its beginning.

        Args:
            scratch: a folder on the disk that takes the tokens; by default that of temporary files.
        Raises:
            DataError: no text, a row length below 2, no lane, a rate outside [0, 1], or no tokens for it.
        """
        if not texts:
            raise DataError("there is no document to pack")
        if seq_len < 2 or lanes < 1 or not 0 <= fim_rate <= 1:
            raise DataError(
                f"seq_len={seq_len} must be at least 2, lanes={lanes} at least 1 and fim_rate={fim_rate} in [0, 1]"
            )
        self.texts, self.tokenizer, self.seq_len, self.seed, self.fim_rate = texts, tokenizer, seq_len, seed, fim_rate
        if fim_rate and not tokenizer.has_fim:
            raise DataError(
                f"the tokenizer has no {FIM_HOLE} and the like for --fim-rate {fim_rate}; give --fim-rate 0"
            )
        count, chars, digest = identify_texts(texts)
        self._identity = [count, chars, tokenizer.vocab_size, seq_len, seed, fim_rate, lanes]
        self._contents = [digest, hashlib.sha256(tokenizer.to_json().encode()).hexdigest()]
        self._lanes = [[lane, 0] for lane in range(lanes)]  # running number of the document read, offset in it
        self._next_document, self._rows_read = lanes, 0
        self._cache = TokenCache(texts, tokenizer, scratch)
        self._reading: dict[int, np.ndarray] = {}
        self._orders: dict[int, np.ndarray] = {}

    def next_batch(self, n_rows: int) -> Batch:
        """Return the next `n_rows` rows."""
        rows = [self._next_row() for _ in range(n_rows)]
        tokens, documents = (np.stack(part) for part in zip(*rows))
        return Batch(torch.from_numpy(tokens), torch.from_numpy(documents))

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands, as JSON can hold it."""
        lanes = [list(lane) for lane in self._lanes]
        position = {"lanes": lanes, "next_document": self._next_document, "rows_read": self._rows_read}
        return {**position, "identity": self._identity, "contents": self._contents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a stream over the same texts stood.

        Raises:
            DataError: it was another stream: other texts, seed, row length or rate.
        """
        if state["identity"] != self._identity:
            raise DataError(
                f"the data changed since the checkpoint (documents, characters, vocabulary, seq_len, seed, fim_rate, "
                f"lanes): it was {state['identity']}, now {self._identity}; give the same data and flags"
            )
        for what, before, now in zip(("texts", "tokenizer"), state.get("contents", self._contents), self._contents):
            if before != now:
                raise DataError(f"the {what} changed since the checkpoint, though not in size; give the same again")
        self._lanes = [list(lane) for lane in state["lanes"]]
        self._next_document, self._rows_read = state["next_document"], state["rows_read"]
        self._reading = {}

    def seen_texts(self) -> list[str]:
        """Return what has been read: whole documents, and of those being read the part before the cursor."""
        reading = {lane[0]: lane[1] for lane in self._lanes}
        # after two passes everything has been read, however many there were
        finished = {self._index(n) for n in range(min(self._next_document, 2 * len(self.texts))) if n not in reading}
        partly: dict[int, str] = {}
        for number, offset in reading.items():
            index = self._index(number)
            if offset and index not in finished:
                text = self.tokenizer.decode(self._document(number)[: offset + 1].tolist())
                partly[index] = max(partly.get(index, ""), text, key=len)
        return [self.texts[i] for i in sorted(finished)] + list(partly.values())

    @property
    def epoch(self) -> float:
        """How often the documents have been begun."""
        return self._next_document / len(self.texts)

    def _index(self, number: int) -> int:
        epoch, rank = divmod(number, len(self.texts))
        if epoch not in self._orders:
            kept = dict(sorted(self._orders.items())[1 - ORDERS_KEPT :])
            self._orders = {**kept, epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self.texts))}
        return int(self._orders[epoch][rank])

    def _next_row(self) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.seq_len + 1
        tokens, documents = np.empty(wanted, np.int64), np.empty(wanted, np.int64)
        lane = self._lanes[self._rows_read % len(self._lanes)]
        filled = 0
        while True:
            number, offset = lane
            piece = self._document(number)[offset : offset + wanted - filled]
            tokens[filled : filled + len(piece)] = piece
            documents[filled : filled + len(piece)] = number
            filled += len(piece)
            if filled == wanted:  # the last token is read again: it opens the lane's next row
                lane[1] += len(piece) - 1
                self._rows_read += 1
                return tokens, documents
            self._reading.pop(number, None)
            lane[:] = [self._next_document, 0]
            self._next_document += 1

    def _document(self, number: int) -> np.ndarray:
        if number not in self._reading:
            index, seed = self._index(number), [self.seed, number // len(self.texts)]
            draws = [np.random.default_rng([*seed, index, 1]) for _ in range(2)]
            if draws[0].random() >= self.fim_rate:
                self._reading[number] = self._cache.document(index)
            else:
                ids = encode_document(self.texts[index], self.tokenizer, self.fim_rate, draws[1])
                self._reading[number] = np.array(ids, np.int64)
        return self._reading[number]


def encode_document(text: str, tokenizer: Tokenizer, fim_rate: float, rng: np.random.Generator) -> list[int]:
    """Return bos, the document, eos; at `fim_rate` with its middle moved to the end.

        <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>

    The cuts fall between characters, not tokens, so that the model later meets prefixes that end inside a word.
    """
    if rng.random() >= fim_rate or len(text) < SHORTEST_MOVED:
        return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    first, second = sorted(int(cut) for cut in rng.integers(0, len(text) + 1, size=2))
    begin, hole, end = tokenizer.fim_ids
    return [
        tokenizer.bos_id,
        begin,
        *tokenizer.encode(text[:first]),
        hole,
        *tokenizer.encode(text[second:]),
        end,
        *tokenizer.encode(text[first:second]),
        tokenizer.eos_id,
    ]
