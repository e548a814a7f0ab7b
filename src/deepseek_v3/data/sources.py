"""What can be read: files, folders, rows and the embedded corpus, as documents of bounded length in a fixed order.

A text file alone is cut into passages of about PASSAGE_CHARS, at blank lines where they are, else at line ends, else at
spaces. A file of a folder and a row are documents; one above DOCUMENT_CHARS is read as several.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepseek_v3.data.documents import DataError, Document
from deepseek_v3.data.pieces import cut_blocks, cut_passages, cut_pieces, cut_text, read_pieces, read_whole

STDLIB_SKIPPED = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__")
    + ("lib2to3", "distutils", "encodings", "pydoc_data", "ensurepip", "turtledemo")  # not in every version, or tables
)
TEXT_COLUMNS = ("text", "content", "body")
PASSAGE_CHARS = 4000
DOCUMENT_CHARS = 400_000
LONGEST_BLOCK = 200  # a block of a short file is not cut below this
WHOLE_BYTES = 2**22  # a file up to this is read at once
ROW_BYTES = 2**26


def read_documents(source: str, text_key: str | None, skipped: list[str]) -> Iterator[Document]:
    """Yield the documents of a source in a fixed order; names of files that are not text go to `skipped`."""
    for document in _read_source(source, text_key, skipped):
        if len(document.text) <= DOCUMENT_CHARS:
            yield document
            continue
        for number, part in enumerate(cut_text(document.text, DOCUMENT_CHARS), 1):
            yield Document(document.name if number == 1 else f"{document.name}#{number}", part)


def _read_source(source: str, text_key: str | None, skipped: list[str]) -> Iterator[Document]:
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
        yield from _passages(path)


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


def _passages(path: Path) -> Iterator[Document]:
    """Cut a file into passages; each is split by its own text."""
    if path.stat().st_size <= WHOLE_BYTES:
        text = read_whole(path)
        if not text.strip():
            raise DataError(f"{path} is empty; give a file with text in it")
        pieces: Iterable[str] = (text,)
        size, blank_lines = min(PASSAGE_CHARS, max(1, len(text) // 20)), "\n\n" in text
    else:
        blank_lines = _check_pieces(path)
        pieces, size = read_pieces(path), PASSAGE_CHARS
    blocks = cut_blocks(pieces, "\n\n" if blank_lines else "\n", max(size, LONGEST_BLOCK))
    for passage in cut_passages(blocks, size):
        yield _row(passage)


def _check_pieces(path: Path) -> bool:
    """Read all of a large file once: is it text, and has it blank lines?"""
    found, blank, last = False, False, ""
    for piece in read_pieces(path):
        found = found or bool(piece.strip())
        blank = blank or "\n\n" in last + piece
        last = piece[-1:]
    if not found:
        raise DataError(f"{path} is empty; give a file with text in it")
    return blank


def _file_parts(path: Path, name: str) -> Iterator[Document]:
    """Yield a file of a folder: one document, or several if it is large."""
    if path.stat().st_size <= WHOLE_BYTES:
        yield Document(name, read_whole(path))
        return
    _check_pieces(path)
    for number, part in enumerate(cut_pieces(read_pieces(path), DOCUMENT_CHARS // 2), 1):
        yield Document(name if number == 1 else f"{name}#{number}", part)


def _row(text: str) -> Document:
    return Document("row-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24], text)


def _folder_documents(folder: Path, text_key: str | None, skipped: list[str]) -> Iterator[Document]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder} cannot be read: permission denied")
    for path in _walk_files(folder, skipped):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".jsonl", ".ndjson"):
            yield from _json_rows(path, text_key)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path, text_key)
        else:
            try:
                yield from _file_parts(path, name)
            except (DataError, OSError):
                skipped.append(name)


def _walk_files(folder: Path, skipped: list[str], above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder in the order of their paths; linked folders too, unless they lead back up."""
    try:
        status = folder.stat()
        names = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError:
        skipped.append(folder.name)
        return
    me = (status.st_dev, status.st_ino)
    for name in names if me not in above else ():
        path = folder / name
        if path.is_dir():
            yield from _walk_files(path, skipped, above | {me})
        elif path.is_file():
            yield path


def _json_rows(path: Path, text_key: str | None) -> Iterator[Document]:
    yield from _rows_with_text(str(path), (_read_row(path, n, line) for n, line in _lines(path)), text_key)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank."""
    try:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(ROW_BYTES):
                number += 1
                if len(line) == ROW_BYTES:
                    raise DataError(f"{path}, line {number} is longer than {ROW_BYTES:,} bytes; cut it into rows")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _read_row(path: Path, number: int, line: bytes) -> dict:
    try:
        row = json.loads(line.decode().replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise DataError(f"{path}, line {number} is not UTF-8 text; convert it, e.g. with iconv -t UTF-8") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}, line {number} is not JSON; a .jsonl file has one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number} is a JSON {type(row).__name__}, not an object with a text in it")
    return row


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
