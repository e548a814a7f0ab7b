"""Where the text comes from: documents, split by file into training and held-out, with a digest.

    load_corpus("stdlib")               what every Python carries: its language reference and standard library
    load_corpus("notes.txt")            a text file, cut at blank lines into passages
    load_corpus("books/")               every text file of a folder
    load_corpus("rows.jsonl"), (".parquet"), ("hf:roneneldan/TinyStories")     rows with a "text" column

A document is on one side for good: its side follows from a hash of its name (rows without a name: of their text), so
adding files never moves the others across, and an exact copy of a document is dropped.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STDLIB_SKIPPED = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__")
    + ("lib2to3", "distutils", "encodings", "pydoc_data", "ensurepip", "turtledemo")  # not in every version, or tables
)
TEXT_COLUMNS = ("text", "content", "body")
PASSAGE_CHARS = 4000
SNIFFED_BYTES = 8192


class DataError(ValueError):
    """Text that cannot be used; the message names it and the mend."""


@dataclass(frozen=True)
class Document:
    """One text and the name that it is split by."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents; the digest changes when any name or character of them does."""

    source: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    digest: str
    skipped: int = 0

    def describe(self) -> str:
        """Return one line with sizes and digest."""
        sizes = [sum(len(d.text.encode()) for d in side) / 1e6 for side in (self.train, self.heldout)]
        return (
            f"{self.source}: {len(self.train):,} documents, {sizes[0]:.2f} MB to learn from; {len(self.heldout):,} "
            f"documents, {sizes[1]:.2f} MB held out; digest {self.digest[:12]}"
        )


def load_corpus(
    source: str, heldout_fraction: float = 0.05, text_key: str | None = None, limit_mb: float = 1000.0
) -> Corpus:
    """Read a corpus and split it.

    Args:
        source: stdlib, a path (.txt and any text file, .jsonl, .parquet, a folder of these), or hf:NAME[:CONFIG].
        heldout_fraction: of the documents, in (0, 1).
        text_key: the column of rows; by default the first of text, content, body.
        limit_mb: stop reading after so many megabytes of text; all of it is held in memory.
    Returns:
        Corpus: both sides hold at least one document.
    Raises:
        DataError: missing, empty, not text, or a single document that leaves nothing to hold out.
    """
    if not 0 < heldout_fraction < 1:
        raise DataError(f"heldout_fraction={heldout_fraction} must be between 0 and 1; 0.05 holds out every twentieth")
    skipped: list[str] = []
    documents, seen, size = [], set(), 0
    for document in read_documents(source, text_key, skipped):
        digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
        if document.text.strip() and digest not in seen:
            seen.add(digest)
            documents.append(document)
            size += len(document.text)
        if size > limit_mb * 1e6:
            break
    if not documents:
        note = f" ({len(skipped)} files were not text)" if skipped else ""
        raise DataError(f"{source} holds no text{note}; give UTF-8 text, jsonl, parquet or a folder of these")
    if len(documents) < 2:
        raise DataError(f"{source} is a single short document, nothing is left to hold out; give at least two passages")
    return split_documents(source, documents, heldout_fraction, len(skipped))


def split_documents(source: str, documents: list[Document], heldout_fraction: float, skipped: int = 0) -> Corpus:
    """Split by the hash of the name; move the nearest one across if a side would be empty."""
    places = {d.name: _place(d.name) for d in documents}
    ordered = sorted(set(places.values()))
    count = min(max(sum(place < heldout_fraction for place in ordered), 1), len(ordered) - 1)
    bound = ordered[count]
    train = tuple(d for d in documents if places[d.name] >= bound)
    heldout = tuple(d for d in documents if places[d.name] < bound)
    if not train or not heldout:
        raise DataError(f"{source}: every document has the same name; nothing can be held out")
    digest = hashlib.sha256()
    for side in (train, heldout):
        for document in side:
            for part in (document.name, document.text):
                encoded = part.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(b"|")
    return Corpus(source, train, heldout, digest.hexdigest(), skipped)


def read_documents(source: str, text_key: str | None, skipped: list[str]) -> Iterator[Document]:
    """Yield the documents of a source in a fixed order; names of files that are not text go to `skipped`."""
    if source == "stdlib":
        yield from stdlib_documents()
        return
    if source.startswith("hf:"):
        yield from _hub_rows(source.removeprefix("hf:"), text_key)
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{source} does not exist; give a file, a folder, hf:NAME, or stdlib for the embedded corpus")
    if path.is_dir():
        yield from _folder_documents(path, text_key, skipped)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(path, text_key)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path, text_key)
    else:
        text = _read_text(path)
        if not text.strip():
            raise DataError(f"{path} is empty; give a file with text in it")
        yield from _passages(text)


def stdlib_documents() -> Iterator[Document]:
    """Yield the language reference's topics, built-in docstrings and the standard library's sources of this Python."""
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield Document(f"topics/{name}", topics.topics[name])
    for name in (
        "builtins",
        "sys",
        "itertools",
        "math",
        "time",
        "_io",
        "_functools",
        "_operator",
        "_collections",
        "gc",
    ):
        yield Document(f"docstrings/{name}", _builtin_docstrings(name))
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if STDLIB_SKIPPED.isdisjoint(parts) and not parts[0].startswith("config-"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if "\ufffd" not in text and len(text) > 200:
                yield Document("/".join(parts), text)


def _builtin_docstrings(module_name: str) -> str:
    """Join what `help` shows of a module that has no Python source; each docstring once."""
    try:
        module = __import__(module_name)
    except ImportError:
        return ""
    pieces, seen = [], set()
    for name in sorted(vars(module)):
        member = getattr(module, name)
        inner = sorted(vars(member)) if isinstance(member, type) else []
        for label, item in [(name, member), *((f"{name}.{n}", getattr(member, n, None)) for n in inner)]:
            text = getattr(item, "__doc__", None) if callable(item) else None
            if isinstance(text, str) and text not in seen and (label == name or "._" not in label):
                seen.add(text)
                pieces.append(f"{label}\n{text}\n")
    return "\n".join(pieces)


def _place(name: str) -> float:
    """Return where in [0, 1) a name falls."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if b"\0" in data[:SNIFFED_BYTES]:
        raise DataError(f"{path} is not text (it holds zero bytes); give UTF-8 text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv -t UTF-8"
        ) from None


def _passages(text: str) -> Iterator[Document]:
    """Cut at blank lines (else at line ends) into passages of about PASSAGE_CHARS; each is split by its own text."""
    gathered, size = [], 0
    for block in text.replace("\n\n", "\n\n\0").split("\0") if text.count("\n\n") else text.splitlines(keepends=True):
        gathered.append(block)
        size += len(block)
        if size >= min(PASSAGE_CHARS, max(1, len(text) // 20)):
            yield _row("".join(gathered))
            gathered, size = [], 0
    if gathered:
        yield _row("".join(gathered))


def _row(text: str) -> Document:
    return Document("row-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24], text)


def _folder_documents(folder: Path, text_key: str | None, skipped: list[str]) -> Iterator[Document]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder} cannot be read: permission denied")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix in (".jsonl", ".ndjson"):
            yield from _json_rows(path, text_key)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path, text_key)
        else:
            try:
                yield Document(name, _read_text(path))
            except DataError:
                skipped.append(name)


def _json_rows(path: Path, text_key: str | None) -> Iterator[Document]:
    def rows() -> Iterator[dict]:
        for number, line in enumerate(_read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                raise DataError(f"{path}, line {number} is not JSON; a .jsonl file has one object a line") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number} is a JSON {type(row).__name__}, not an object with a text in it"
                )
            yield row

    yield from _rows_with_text(str(path), rows(), text_key)


def _parquet_rows(path: Path, text_key: str | None) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow: pip install 'deepseek-v3-from-scratch[data]'") from None
    try:
        table = parquet.ParquetFile(path)
        rows = (row for batch in table.iter_batches(batch_size=256) for row in batch.to_pylist())
        yield from _rows_with_text(str(path), rows, text_key)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0][:80]})") from None


def _hub_rows(name: str, text_key: str | None) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name} needs datasets: pip install 'deepseek-v3-from-scratch[data]'") from None
    dataset, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
    except Exception as error:  # the hub, the network and the builders each have their own
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"hf:{name} cannot be loaded ({line}); check the name and the network") from None
    yield from _rows_with_text(f"hf:{name}", rows, text_key)


def _rows_with_text(place: str, rows: Iterable, text_key: str | None) -> Iterator[Document]:
    for number, row in enumerate(rows, 1):
        key = text_key or next((k for k in TEXT_COLUMNS if isinstance(row.get(k), str)), None)
        text = row.get(key) if key else None
        if not isinstance(text, str):
            kind = f"{type(text).__name__}, not text," if key in row else "no text"
            raise DataError(
                f"{place}, row {number}: {kind} under {key or ' / '.join(TEXT_COLUMNS)!r}; it has {sorted(row)[:8]}; "
                "name the column with --text-key"
            )
        yield _row(text)
