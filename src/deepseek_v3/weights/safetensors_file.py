"""One .safetensors file: a strict reader of its header, a view of its tensors, and the header's writer.

    [8 bytes: n, little-endian] [n bytes: header, JSON] [data]
    header = {"__metadata__": {"k": "v"}, "NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

The header of the format has one shape and no recursion, so one pattern per entry reads it: there is no nesting to
overflow, no number that is not a plain integer, and the first deviation stops. On top of the format's own rules: no
name twice, no two tensors on the same bytes, no byte that belongs to no tensor, and a size that is the file's exactly.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from deepseek_v3.weights.errors import DtypeError, HeaderError, MissingTensorError, clip
from deepseek_v3.weights.memory_map import let_go, map_bytes

MAX_HEADER_BYTES = 16 * 2**20  # the format allows 100 MB; the largest released header is about 0.1 MB
MAX_METADATA_BYTES = 2**20
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

_WS = r"[ \t\r\n]{0,64}"
_NAME = r'"([ !#-\[\]-~]{1,512})"'  # printable ASCII without quote and backslash
_INT = r"(?:0|[1-9][0-9]{0,18})"
_LIST = rf"\[{_WS}((?:{_INT}(?:{_WS},{_WS}{_INT}){{0,7}})?){_WS}\]"
_FIELD = rf'{_WS}"(dtype|shape|data_offsets)"{_WS}:{_WS}(?:"([A-Z0-9_]{{1,16}})"|{_LIST}){_WS}'
_ENTRY = re.compile(rf"{_WS}{_NAME}{_WS}:{_WS}\{{{_FIELD},{_FIELD},{_FIELD}\}}{_WS}")
_TEXT = r'("[^"\\\x00-\x1f]*(?:\\["\\/bfnrtu][^"\\\x00-\x1f]*)*")'
_METADATA = re.compile(rf'{_WS}"__metadata__"{_WS}:{_WS}\{{')
_PAIR = re.compile(rf"{_WS}{_TEXT}{_WS}:{_WS}{_TEXT}{_WS}")
_CLOSING = re.compile(rf"{_WS}\}}{_WS}")
_NAMED = re.compile(rf"{_WS}{_NAME}")


class TensorEntry(NamedTuple):
    """Where one tensor lies: `start` and `end` count bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A header that has passed every check, its entries in the order of their bytes."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    file_bytes: int


def parse_header(raw: bytes, file_bytes: int, file: str | PathLike) -> Header:
    """Read the header `raw` (without its 8-byte length) of a file of `file_bytes` bytes.

    Raises:
        HeaderError: anything that the format or the rules of the module's caption do not allow.
    """
    text = _decode(raw, file)
    metadata: dict[str, str] | None = None
    found: dict[str, TensorEntry] = {}
    position = 1
    more = filled = text[1:-1].strip(" \t\r\n") != ""
    while more:
        if match := _METADATA.match(text, position):
            if metadata is not None:
                raise HeaderError("__metadata__ occurs twice", file=file)
            metadata, position = _read_metadata(text, match.end(), file)
        else:
            entry, position = _read_entry(text, position, 8 + len(raw), file)
            if entry.name in found:
                raise HeaderError("the name occurs twice in the header", file=file, tensor=entry.name)
            found[entry.name] = entry
        more = text[position : position + 1] == ","
        position += more
    if filled and position != len(text) - 1:
        raise HeaderError(f"expected ',' or the closing '}}' at header byte {position}", file=file)
    return Header(_check_layout(found, 8 + len(raw), file_bytes, file), metadata or {}, file_bytes)


def _decode(raw: bytes, file: str | PathLike) -> str:
    if not raw.isascii() and len(raw) > MAX_METADATA_BYTES:
        raise HeaderError("a header above 1 MB that is not plain ASCII", file=file)
    try:
        text = raw.decode("utf-8").rstrip(" ")
    except UnicodeDecodeError as error:
        raise HeaderError(f"the header is not UTF-8 (header byte {error.start})", file=file) from None
    if len(text) < 2 or text[0] != "{" or text[-1] != "}":
        raise HeaderError(f"the header is not a JSON object (it begins {clip(text[:20])!r})", file=file)
    return text


def _read_metadata(text: str, position: int, file: str | PathLike) -> tuple[dict[str, str], int]:
    metadata: dict[str, str] = {}
    limit = position + MAX_METADATA_BYTES
    while match := _PAIR.match(text, position, limit):
        try:
            key, value = json.loads(match[1]), json.loads(match[2])
        except ValueError:
            raise HeaderError(f"__metadata__ holds a malformed text at header byte {position}", file=file) from None
        if key in metadata:
            raise HeaderError(f"__metadata__ has the key {clip(key)!r} twice", file=file)
        metadata[key] = value
        position = match.end()
        if text[position : position + 1] != ",":
            break
        position += 1
    closing = _CLOSING.match(text, position)
    if not closing:
        raise HeaderError("__metadata__ is not a flat map of texts below 1 MB", file=file)
    return metadata, closing.end()


def _read_entry(text: str, position: int, data_start: int, file: str | PathLike) -> tuple[TensorEntry, int]:
    match = _ENTRY.match(text, position)
    if not match:
        named = _NAMED.match(text, position)
        raise HeaderError(
            f"malformed entry at header byte {position}",
            file=file,
            tensor=named[1] if named else None,
            mend='an entry is "NAME": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}',
        )
    name = match[1]
    fields = {match[i]: match[i + 1] if match[i] == "dtype" else match[i + 2] for i in (2, 5, 8)}
    if len(fields) != 3 or None in fields.values():
        raise HeaderError("needs dtype, shape and data_offsets, each once", file=file, tensor=name)
    shape, offsets = (tuple(map(int, fields[key].replace(",", " ").split())) for key in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise HeaderError(f"data_offsets has {len(offsets)} numbers, not 2", file=file, tensor=name)
    entry = TensorEntry(name, fields["dtype"], shape, data_start + offsets[0], data_start + offsets[1])
    return entry, match.end()


def _check_layout(
    found: dict[str, TensorEntry], data_start: int, file_bytes: int, file: str | PathLike
) -> dict[str, TensorEntry]:
    """Every byte of the data belongs to exactly one tensor, and every tensor has exactly its bytes."""
    expected = data_start
    ordered = sorted(found.values(), key=lambda entry: (entry.start, entry.end))
    for entry in ordered:
        where = {"file": file, "tensor": entry.name}
        if entry.dtype not in DTYPES:
            raise DtypeError(f"dtype {entry.dtype!r} is not one of {', '.join(DTYPES)}", **where)
        if entry.end > file_bytes:
            raise HeaderError(f"its bytes end at {entry.end:,}, the file at {file_bytes:,}: truncated?", **where)
        n_bytes = prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.n_bytes != n_bytes:
            raise HeaderError(
                f"{entry.dtype} {list(entry.shape)} takes {n_bytes:,} bytes, its offsets span {entry.n_bytes:,}",
                **where,
            )
        if entry.start != expected:
            kind = "overlap the tensor before" if entry.start < expected else "leave a hole before them"
            raise HeaderError(f"its bytes {kind} (start {entry.start:,}, expected {expected:,})", **where)
        expected = entry.end
    if expected != file_bytes:
        raise HeaderError(f"{file_bytes - expected:,} bytes after the last tensor belong to none", file=file)
    return {entry.name: entry for entry in ordered}


def read_header(path: str | PathLike) -> Header:
    """Read and check the header of the file at `path`; its data is not touched.

    Raises:
        HeaderError: not a well-formed .safetensors file, or its size is not what the header says.
    """
    try:
        with Path(path).open("rb") as stream:
            file_bytes = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise HeaderError(f"{file_bytes} bytes are too few for a .safetensors file", file=path)
            n = int.from_bytes(prefix, "little")
            if n > MAX_HEADER_BYTES:
                raise HeaderError(f"a header of {n:,} bytes is above the limit of {MAX_HEADER_BYTES:,}", file=path)
            if n > file_bytes - 8:
                raise HeaderError(
                    f"a header of {n:,} bytes does not fit a file of {file_bytes:,}: truncated?", file=path
                )
            return parse_header(stream.read(n), file_bytes, path)
    except OSError as error:
        raise HeaderError(f"cannot be read: {error.strerror or error}", file=path) from error


class SafetensorsFile:
    """The tensors of one file, memory-mapped: nothing is read before it is asked for.

    Use as a context manager. `view` shares the mapping's memory, so copy what must outlive it. `header`, if it was
    read before, is not read again.

    Attributes:
        bytes: all of the file.
        address: where the first of them is mapped.
    """

    def __init__(self, path: str | PathLike, header: Header | None = None):
        self.path = Path(path)
        self.header = header or read_header(path)
        self.bytes = map_bytes(self.path, 0, self.header.file_bytes)
        self.address = self.bytes.data_ptr()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def view(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Show the tensor `name`, or the rows from `rows.start` to `rows.stop` of it, without copying it."""
        entry = self.header.entries.get(name)
        if entry is None:
            raise MissingTensorError("is not in this file", file=self.path, tensor=name)
        dtype = DTYPES[entry.dtype]
        start, shape = entry.start, entry.shape
        if rows is not None:
            start += entry.n_bytes // shape[0] * rows.start
            shape = (rows.stop - rows.start, *shape[1:])
        n_bytes = prod(shape) * dtype.itemsize
        if not n_bytes:
            return torch.empty(shape, dtype=dtype)
        flat = self.bytes[start : start + n_bytes]
        if start % dtype.itemsize:
            flat = flat.clone()  # another writer did not align it; PyTorch wants it aligned
        return flat.view(dtype).view(shape)

    def release(self) -> None:
        """Let the system forget the pages read so far (they count as this process's memory)."""
        let_go(self.bytes)


def layout_header(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: dict[str, str] | None = None
) -> tuple[bytes, list[str]]:
    """Lay tensors out in one file: wide numbers first, so that each is aligned, then by name.

    Returns:
        head: the file's bytes up to the data, padded with spaces to a multiple of 8.
        order: the names in the order in which their bytes must follow.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    ordered = sorted(tensors, key=lambda tensor: (-tensor[1].itemsize, tensor[0]))
    offset = 0
    for name, dtype, shape in ordered:
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode("ascii")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, [name for name, _, _ in ordered]
