"""Where the text comes from: documents, split into training and held-out, with a digest.

    load_corpus("stdlib")               what every Python carries: its language reference and standard library
    load_corpus("notes.txt")            a text file, cut at blank lines into passages
    load_corpus("books/")               every text file of a folder
    load_corpus("rows.jsonl"), (".parquet"), ("hf:roneneldan/TinyStories")     rows with a "text" column

All of it is read once, into a nameless file; memory holds some sixty bytes a document. An exact copy of a document is
dropped. A corpus of many documents is split by a hash of their names (rows without a name: of their text). Where so few
or so unequal documents would hold out much more or less than asked, each of them gives its last part instead.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek_v3.data.documents import DataError, Document, Documents, DocumentStore, Texts
from deepseek_v3.data.sources import read_documents

HUB_MB = 1000.0
MANY_DOCUMENTS = 20  # fewer are not split by name
UNEVEN = 2.5  # by name only if the held-out share of the text is within this factor of what was asked
LEARNED_CHARS = 16_000_000  # a tokenizer changes hardly with more, and takes its time
LEAST_CHARS = 100  # of a corpus, and of a part that is worth holding out

__all__ = ["Corpus", "DataError", "Document", "load_corpus", "split_documents"]

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents; the digest changes when any name or character of them does."""

    source: str
    train: Documents
    heldout: Documents
    digest: str
    held_by: str = ""
    skipped: int = 0
    note: str = ""

    def describe(self) -> str:
        """Return one line with sizes, what is held out, and digest."""
        sizes = [side.n_bytes() / 1e6 for side in (self.train, self.heldout)]
        return (
            f"{self.source}: {len(self.train):,} documents, {sizes[0]:.2f} MB to learn from; {len(self.heldout):,} "
            f"{self.held_by}, {sizes[1]:.2f} MB held out; digest {self.digest[:12]}{self.note}"
        )

    def train_texts(self) -> Texts:
        """Return the texts to learn from, read one at a time."""
        return Texts(self.train)

    def texts_to_merge(self) -> Iterator[str]:
        """Yield the texts that a tokenizer is learned from: all, or LEARNED_CHARS spread evenly over more."""
        step = max(1.0, int(self.train.chars.sum()) / LEARNED_CHARS)
        return (self.train.text(int(i * step)) for i in range(int(len(self.train) / step)))

    def heldout_texts(self, most: int) -> list[str]:
        """Return held-out texts, at most so many, spread evenly over them."""
        count = min(most, len(self.heldout))
        return [self.heldout.text(i * len(self.heldout) // count) for i in range(count)]


def load_corpus(
    source: str,
    heldout_fraction: float = 0.05,
    text_key: str | None = None,
    *,
    scratch: str | Path | None = None,
    watch: Watch | None = None,
) -> Corpus:
    """Read a corpus and split it.

    Args:
        source: stdlib, a path (.txt and any text file, .jsonl, .parquet, a folder of these), or hf:NAME[:CONFIG].
        heldout_fraction: of the text, in (0, 1).
        text_key: the column of rows; by default the first of text, content, body.
        scratch: a folder on the disk that takes a copy of the text; by default that of temporary files.
        watch: told documents and bytes while reading.
    Returns:
        Corpus: both sides hold text. Of the Hub the first HUB_MB are read, and `note` says so; else all.
    Raises:
        DataError: missing, empty, not text, or so short that nothing is left to hold out.
    """
    if not 0 < heldout_fraction < 1:
        raise DataError(f"heldout_fraction={heldout_fraction} must be between 0 and 1; 0.05 holds out every twentieth")
    skipped: list[str] = []
    store, note = DocumentStore(scratch), ""
    for document in read_documents(source, text_key, skipped):
        if not document.text.strip():
            continue
        store.add(document)
        if watch:
            watch(len(store), store.n_bytes)
        if source.startswith("hf:") and store.n_bytes > HUB_MB * 1e6:
            note = f"; reading stopped at {HUB_MB:,.0f} MB, save a larger set as .parquet and give its folder"
            break
    if not len(store):
        left_out = f" ({len(skipped)} files were not text)" if skipped else ""
        raise DataError(f"{source} holds no text{left_out}; give UTF-8 text, jsonl, parquet or a folder of these")
    return split_store(source, store, heldout_fraction, len(skipped), note)


def split_documents(source: str, documents: Iterable[Document], heldout_fraction: float) -> Corpus:
    """Split documents that are in memory."""
    store = DocumentStore()
    for document in documents:
        store.add(document)
    return split_store(source, store, heldout_fraction)


def split_store(source: str, store: DocumentStore, fraction: float, skipped: int = 0, note: str = "") -> Corpus:
    """Split by name where that holds out about what was asked, else each document by its length.

    Raises:
        DataError: too short to be split.
    """
    rows = store.first_copies()
    chars, total = store.n_chars()[rows], int(store.n_chars()[rows].sum())
    if total < 2 or (len(rows) == 1 and total < LEAST_CHARS):
        raise DataError(
            f"{source} is a single short document, nothing is left to hold out; give {LEAST_CHARS} characters"
        )
    held = store.places()[rows] < fraction
    share = chars[held].sum() / total
    if len(rows) >= MANY_DOCUMENTS and fraction / UNEVEN <= share <= min(fraction * UNEVEN, (1 + fraction) / 2):
        train, heldout, held_by = store.documents(rows[~held]), store.documents(rows[held]), "documents"
    elif (chars * fraction >= LEAST_CHARS).any():
        train, heldout = _split_inside(store.documents(rows), fraction)
        held_by = "last parts of documents"
    else:
        train, heldout = _split_short(store, rows, fraction)
        held_by = "documents" if len(rows) > 1 else "last part of it"
    digest = hashlib.sha256(f"{train.digest()}{heldout.digest()}".encode()).hexdigest()
    return Corpus(source, train, heldout, digest, held_by, skipped, note)


def _split_inside(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """Hold out the end of every document that is long enough for it, from a line or a word on where one begins near."""
    at = documents.chars.copy()
    for i in np.flatnonzero(documents.chars * fraction >= LEAST_CHARS):
        text = documents.text(int(i))
        wanted = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
        near = min(LEAST_CHARS, len(text) - 1 - wanted)
        found = [end + 1 for mark in "\n " if (end := text.find(mark, wanted, wanted + near)) >= 0]
        at[i] = found[0] if found else wanted
    return documents.cut(at, after=False), documents.cut(at, after=True)


def _split_short(store: DocumentStore, rows: np.ndarray, fraction: float) -> tuple[Documents, Documents]:
    """Hold out short documents, whole, in the order of their hashes; at least one, and never the last."""
    if len(rows) == 1:
        only = store.documents(rows)
        at = np.clip((only.chars * (1 - fraction)).astype(np.int64), 1, only.chars - 1)
        return only.cut(at, after=False), only.cut(at, after=True)
    order = np.argsort(store.places()[rows], kind="stable")
    reached = np.cumsum(store.n_chars()[rows][order]) / store.n_chars()[rows].sum()
    count = min(int(np.searchsorted(reached, fraction)) + 1, len(rows) - 1)
    held = np.zeros(len(rows), bool)
    held[order[:count]] = True
    return store.documents(rows[~held]), store.documents(rows[held])
