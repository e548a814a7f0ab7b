"""A checkpoint that many processes wrote, each its parts: read as if it were one of whole tensors.

    step-00000500/   config.json  tokenizer.json  manifest.json  training_state.json
                     shards/shard-00001-model-00001-of-00001.safetensors  ...        one a process, PyTorch's DCP

Tensors have the names of our memory: `model.layers.3.mlp.experts.gate_up_proj` for a weight, `exp_avg.NAME` for a
moment of it. The header of a file says where its parts begin in the whole; nothing is unpickled. Released names and
shapes are made of them on the way, a few rows at a time, so whoever reads a released folder reads this one too.

Source: the format of `torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)`.
"""

import json
from collections.abc import Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepseek_v3.weights.checkpoint import Checkpoint
from deepseek_v3.weights.errors import CheckpointError, HeaderError
from deepseek_v3.weights.manifest import SHARDS
from deepseek_v3.weights.names import Slot, iterate_slots, mtp_layer_of
from deepseek_v3.weights.safetensors_file import DTYPES, Header, SafetensorsFile, TensorEntry, read_header
from deepseek_v3.weights.shards import check_inside
from deepseek_v3.weights.stored import build_config, read_keys

MODEL = "model."  # before the name of a weight
PLACES, BEGINS = "DCP_SHARDING_INFO", "saved_offsets"  # the words of the format


class Part(NamedTuple):
    """A box of a tensor, in some file."""

    file: Path
    entry: TensorEntry
    begins: tuple[int, ...]


class Whole(NamedTuple):
    """A tensor, and the parts that make it up."""

    shape: tuple[int, ...]
    dtype: str
    parts: list[Part]


def is_sharded(folder: str | PathLike) -> bool:
    """Whether many processes wrote it."""
    return (Path(folder) / SHARDS).is_dir()


class PartsReader:
    """The tensors of a folder of parts, put together where they are asked for; a context manager.

    Raises:
        CheckpointError: a file is damaged, or the parts of a tensor are not the whole of it.
    """

    def __init__(self, folder: str | PathLike, *, follow_links: bool = False) -> None:
        shards = Path(folder) / SHARDS
        self.headers: dict[Path, Header] = {}
        for path in sorted(shards.glob("*.safetensors")):
            check_inside(shards, path.name, path, follow_links)
            self.headers[path] = read_header(path)
        if not self.headers:
            raise CheckpointError("holds no .safetensors file", file=shards)
        self.tensors = _put_together(self.headers)
        self._open: dict[Path, SafetensorsFile] = {}

    def __enter__(self) -> "PartsReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._open.clear()

    def release(self) -> None:
        """Let the system forget the pages read so far."""
        for file in self._open.values():
            file.release()

    def file(self, path: Path) -> SafetensorsFile:
        """Map a file, once."""
        if path not in self._open:
            self._open[path] = SafetensorsFile(path, self.headers[path])
        return self._open[path]

    def read(self, name: str, begins: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> Tensor:
        """Return a box of a tensor, or all of it; without a copy, if it lies in one part."""
        whole = self.tensors[name]
        begins, shape = begins or [0] * len(whole.shape), whole.shape if shape is None else shape
        found: Tensor | None = None
        for part in whole.parts:
            low = [max(a, b) for a, b in zip(begins, part.begins)]
            high = [min(a + n, b + m) for a, n, b, m in zip(begins, shape, part.begins, part.entry.shape)]
            if any(a >= b for a, b in zip(low, high)):
                continue
            box = self.file(part.file).view(name)[tuple(slice(a - p, b - p) for a, b, p in zip(low, high, part.begins))]
            if box.shape == torch.Size(shape):
                return box
            found = torch.empty(tuple(shape), dtype=DTYPES[whole.dtype]) if found is None else found
            found[tuple(slice(a - b, h - b) for a, h, b in zip(low, high, begins))] = box
        return torch.empty(tuple(shape), dtype=DTYPES[whole.dtype]) if found is None else found


def _put_together(headers: dict[Path, Header]) -> dict[str, Whole]:
    parts: dict[str, list[Part]] = {}
    for path, header in headers.items():
        begins = _read_places(header, path)
        for name, entry in header.entries.items():
            parts.setdefault(name, []).append(Part(path, entry, begins[name]))
    return {name: _check_parts(name, found) for name, found in parts.items()}


def _read_places(header: Header, path: Path) -> dict[str, tuple[int, ...]]:
    """Where each tensor of a file begins in its whole."""
    try:
        places: Any = json.loads(header.metadata[PLACES])
        begins = {name: tuple(places[name][BEGINS]) for name in header.entries}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise HeaderError(f"__metadata__ does not say where its parts begin ({PLACES})", file=path) from None
    for name, entry in header.entries.items():
        good = all(type(n) is int and 0 <= n < 2**40 for n in begins[name]) and len(begins[name]) == len(entry.shape)
        if not good:
            raise HeaderError("its part begins nowhere in a tensor of its shape", file=path, tensor=name)
    return begins


def _check_parts(name: str, parts: list[Part]) -> Whole:
    """Hold the parts of a tensor against each other: of one format, beginning at different places, without a hole."""
    ends = [[a + n for a, n in zip(part.begins, part.entry.shape)] for part in parts]
    shape = tuple(max(lengths) for lengths in zip(*ends))
    filled = [part for part in parts if prod(part.entry.shape)]
    numbers = sum(prod(part.entry.shape) for part in filled)
    dtypes = {part.entry.dtype for part in parts}
    if len(dtypes) > 1 or numbers != prod(shape) or len({part.begins for part in filled}) < len(filled):
        mend = "a file of another process is missing, or is of another checkpoint"
        raise CheckpointError(
            f"its parts hold {numbers:,} numbers, {list(shape)} has {prod(shape):,}",
            file=parts[0].file.parent, tensor=name, mend=mend,
        )  # fmt: skip
    return Whole(shape, parts[0].entry.dtype, filled)


class ShardedCheckpoint(Checkpoint):
    """Parts of many processes under released names; everything else is as of a folder of whole tensors."""

    def __init__(self, folder: str | PathLike, *, mtp: bool = True, follow_links: bool = False) -> None:
        self.folder, self.keys = Path(folder), read_keys(folder)
        self.config = build_config(self.keys, folder)
        self.parts = PartsReader(folder, follow_links=follow_links)
        self._headers, self._open = self.parts.headers, self.parts._open
        self._begin()
        self._placed: dict[str, Slot] = {}
        self._find_slots(mtp=mtp)
        self._settle_mtp(mtp=mtp)

    def _find_slots(self, *, mtp: bool) -> None:
        """Name every tensor as a released checkpoint does, up to the first that is not there."""
        left = {name for name in self.parts.tensors if name.startswith(MODEL)}
        for slot in iterate_slots(self.config):
            whole = self.parts.tensors.get(MODEL + slot.memory)
            if whole is None or (slot.expert or 0) >= max(whole.shape[:1], default=0):
                return
            left.discard(MODEL + slot.memory)
            if mtp or not mtp_layer_of(slot.name, self.config):
                self._placed[slot.name] = slot
                self._enter(slot.name, self._shape_of(slot, whole), whole)
        for name in sorted(left):
            self._enter(name, self.parts.tensors[name].shape, self.parts.tensors[name])

    def _shape_of(self, slot: Slot, whole: Whole) -> tuple[int, ...]:
        shape = whole.shape if slot.expert is None else whole.shape[1:]
        return shape if slot.rows is None else (shape[0] // 2, *shape[1:])  # gate above up

    def _enter(self, name: str, shape: tuple[int, ...], whole: Whole) -> None:
        n_bytes = prod(shape) * DTYPES[whole.dtype].itemsize
        self.entries[name] = TensorEntry(name, whole.dtype, shape, 0, n_bytes)
        self.files[name] = whole.parts[0].file if whole.parts else self.folder / SHARDS

    def count_shards(self) -> int:
        """Return how many files hold it."""
        return len(self.parts.headers)

    def view(self, name: str, rows: slice | None = None) -> Tensor:
        """Put a released tensor, or some of its rows, together."""
        slot, shape = self._placed[name], list(self.entries[name].shape)
        begins = [0] * len(shape)
        if rows is not None:
            begins[0], shape[0] = rows.start, rows.stop - rows.start
        if slot.expert is None:
            return self.parts.read(MODEL + slot.memory, begins, shape)
        begins[0] += slot.rows[0] if slot.rows else 0
        return self.parts.read(MODEL + slot.memory, [slot.expert, *begins], [1, *shape])[0]

    def check_copy(self, name: str, original: str) -> None:
        """Do nothing: a copy is the same parts."""

    def plan_rows(self, name: str, rows: slice, place: Tensor, scale_place: Tensor | None = None) -> None:
        """Leave it to `read_rows`: a kernel copies from one place."""
        return None


def read_further(folder: str | PathLike) -> dict[str, Tensor]:
    """Read every tensor that is no weight of the model, whole: moments, averages, random state."""
    with PartsReader(folder) as parts:
        return {name: parts.read(name).clone() for name in parts.tensors if not name.startswith(MODEL)}


def list_stored(folder: str | PathLike) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its stored name."""
    return {name: whole.shape for name, whole in PartsReader(folder).tensors.items()}
