"""Documents on disk: text of any size in bounded memory, read back one document at a time.

    store = DocumentStore(); store.add(Document("a.txt", "text")); store.documents(rows)[0].text

The file has no name from the start (or loses it at once): a kill leaves nothing behind.
"""

import hashlib
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import cast, overload

import numpy as np

BUFFER_BYTES = 2**22


class DataError(ValueError):
    """Text that cannot be used; the message names it and the mend."""


@dataclass(frozen=True)
class Document:
    """One text and the name that it is split by."""

    name: str
    text: str


def open_nameless(owner: object, folder: str | Path | None) -> FileIO:
    """Open a file without a name on the disk of a folder, closed with its owner."""
    file = cast(FileIO, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115  # the owner closes it
    weakref.finalize(owner, file.close)
    return file


class DocumentStore:
    """Documents one behind the other in a nameless file; some sixty bytes of memory for each."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Open the file.

        Args:
            folder: a folder on the disk to use; by default where temporary files go.
        Raises:
            DataError: it cannot be written there.
        """
        self.folder = str(folder or tempfile.gettempdir())
        try:
            self._file = open_nameless(self, self.folder)
        except OSError as error:
            raise DataError(f"{self.folder}: no file for the text can be made there ({error.strerror})") from None
        self._pending, self.n_bytes = bytearray(), 0
        self._ends, self._name_sizes, self._chars = array("Q"), array("H"), array("I")
        self._name_hashes, self._text_hashes = bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, document: Document) -> None:
        """Append a document.

        Raises:
            DataError: half a character in it, a name of 64 KB, or the disk is full.
        """
        try:
            text, name = document.text.encode(), document.name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            place = f"character {error.start:,} of {document.name[:60]!r}"
            raise DataError(
                f"{place} is half of one (a lone surrogate); write it as a whole, or leave it out"
            ) from None
        if len(name) > 65_535:
            raise DataError(f"{document.name[:60]!r}... is a name of {len(name):,} bytes; name it shorter")
        self._pending += name
        self._pending += text
        self.n_bytes += len(name) + len(text)
        self._ends.append(self.n_bytes)
        self._name_sizes.append(len(name))
        self._chars.append(len(document.text))
        self._name_hashes += hashlib.sha256(name).digest()[:8]
        self._text_hashes += hashlib.sha256(text).digest()
        if len(self._pending) >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is pending to the file.

        Raises:
            DataError: the disk is full, or the file may not be so long.
        """
        pending = memoryview(self._pending)
        try:
            while pending:
                pending = pending[os.write(self._file.fileno(), pending) :]
        except OSError as error:
            needs = f"the text needs {self.n_bytes:,} bytes and more in {self.folder}"
            raise DataError(f"{needs}: {(error.strerror or '').lower()}; make room, or use less text") from None
        self._pending = bytearray()

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file."""
        if self._pending:
            self.flush()
        return os.pread(self._file.fileno(), size, start)

    def n_chars(self) -> np.ndarray:
        """Return how many characters each document has."""
        return np.array(self._chars, np.int64)

    def places(self) -> np.ndarray:
        """Return where in [0, 1) the hash of each name falls."""
        return np.frombuffer(bytes(self._name_hashes), ">u8").astype(np.float64) / 2**64

    def hashes(self) -> np.ndarray:
        """Return name and text of each document as 40 bytes."""
        names = np.frombuffer(bytes(self._name_hashes), np.uint8).reshape(-1, 8)
        return np.concatenate([names, np.frombuffer(bytes(self._text_hashes), np.uint8).reshape(-1, 32)], axis=1)

    def first_copies(self) -> np.ndarray:
        """Return the documents without exact copies of earlier ones, in their order."""
        texts = np.frombuffer(bytes(self._text_hashes), "V32")
        return np.sort(np.unique(texts, return_index=True)[1]) if len(texts) else np.zeros(0, np.int64)

    def documents(self, rows: np.ndarray) -> "Documents":
        """Return some of the documents, whole."""
        ends = np.array(self._ends, np.int64)
        names = np.array(self._name_sizes, np.int64)
        starts = np.concatenate([ends[:0], [0], ends[:-1]]) + names
        return Documents(self, rows, starts[rows], (ends - starts)[rows], self.n_chars()[rows])

    def name(self, row: int) -> str:
        """Return the name of a document."""
        start = self._ends[row - 1] if row else 0
        return self.read(start, self._name_sizes[row]).decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Documents(Sequence[Document]):
    """Documents of a store, or parts of them; a text is read when it is asked for."""

    store: DocumentStore
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    chars: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        """Return one document, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Document(self.store.name(int(self.rows[index])), self.text(index))

    def text(self, index: int) -> str:
        """Return the text of a document."""
        return self.store.read(int(self.starts[index]), int(self.sizes[index])).decode()

    def n_bytes(self) -> int:
        """Return the bytes of all texts."""
        return int(self.sizes.sum())

    def digest(self) -> str:
        """Return what changes when any name or character does."""
        parts = np.stack([self.starts, self.sizes], axis=1)
        return hashlib.sha256(self.store.hashes()[self.rows].tobytes() + parts.tobytes()).hexdigest()

    def cut(self, at: np.ndarray, *, after: bool) -> "Documents":
        """Return the parts of the documents before (or after) so many characters, without those that are empty."""
        n_bytes = np.array([len(self.text(i)[:chars].encode()) for i, chars in enumerate(at)], np.int64)
        starts = self.starts + n_bytes if after else self.starts
        sizes = self.sizes - n_bytes if after else n_bytes
        chars = self.chars - at if after else at
        kept = sizes > 0
        return Documents(self.store, self.rows[kept], starts[kept], sizes[kept], chars[kept])


class Texts(Sequence[str]):
    """The texts of documents, read one at a time."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one text, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.documents.text(index)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def identify_texts(texts: Sequence[str]) -> tuple[int, int, str]:
    """Return number, characters and digest of texts: equal only for equal texts in the same order."""
    if isinstance(texts, Texts):
        return len(texts), int(texts.documents.chars.sum()), texts.documents.digest()
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return len(texts), sum(map(len, texts)), digest.hexdigest()
