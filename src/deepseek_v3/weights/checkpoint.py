"""A checkpoint folder opened for reading: its config, its tensors, and whether the two fit.

    with Checkpoint("DIR") as checkpoint:
        checkpoint.check()
        weight = checkpoint.weight("model.layers.0.self_attn.o_proj.weight", torch.bfloat16)

Nothing from the folder is executed or unpickled: config.json, headers and numbers are all that is looked at.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import inf, prod
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.decode import dequantize_into, dequantize_weight
from deepseek_v3.fp8.quantize import BLOCK, find_nan_code
from deepseek_v3.native.build import have_kernels
from deepseek_v3.weights.digests import Piece, map_piece
from deepseek_v3.weights.errors import (
    CheckpointError,
    ConfigFileError,
    DtypeError,
    MissingTensorError,
    ScaleError,
    ShapeError,
    UnexpectedTensorError,
)
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.mapping import ReadAhead
from deepseek_v3.weights.names import SCALE_SUFFIX, Slot, iterate_slots, mtp_layer_of, scale_name, scale_shape
from deepseek_v3.weights.safetensors_file import DTYPES, SafetensorsFile, TensorEntry
from deepseek_v3.weights.shards import read_headers
from deepseek_v3.weights.strict_json import read_json
from deepseek_v3.weights.transfer import COPY, FORM_OF_FP8, Transfer

CONFIG = "config.json"
MAX_CONFIG_BYTES = 2**20
PIECE_ELEMENTS = 2**24  # of a tensor that are read or converted at a time
FLOATS = ("F32", "BF16", "F16", "F64")
FP8 = "F8_E4M3"


def read_config(folder: str | PathLike) -> ModelConfig:
    """Read the config.json of a folder.

    Raises:
        ConfigFileError: unreadable, or a model that this package does not build.
    """
    path = Path(folder) / CONFIG
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        place = path if Path(folder).is_dir() else folder
        problem = "is a file, not a folder" if Path(folder).is_file() else "does not exist"
        mend = f"give a run folder, or one that holds {CONFIG} and .safetensors files"
        raise ConfigFileError(problem, file=place, mend=mend) from None
    except OSError:
        pass  # said below
    values = read_json(path, MAX_CONFIG_BYTES, ConfigFileError)
    try:
        return ModelConfig.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ConfigFileError(str(error) or type(error).__name__, file=path) from None


class Checkpoint:
    """Config and located tensors of a folder; use as a context manager.

    Attributes:
        config: with `num_nextn_predict_layers` 0 if the MTP layers were not asked for.
        entries: where every tensor lies, by released name; MTP layers that were not asked for are left out.
        files: the shard that holds each tensor.
    """

    def __init__(self, folder: str | PathLike, *, mtp: bool = True, follow_links: bool = False):
        self.folder = Path(folder)
        self.config = read_config(folder)
        self._headers = read_headers(folder, follow_links=follow_links)
        self.files: dict[str, Path] = {}
        self.entries: dict[str, TensorEntry] = {}
        for file, header in self._headers.items():
            for name, entry in header.entries.items():
                if name in self.entries:
                    raise UnexpectedTensorError(f"occurs in {self.files[name].name} too", file=file, tensor=name)
                if mtp or not mtp_layer_of(name, self.config):
                    self.entries[name], self.files[name] = entry, file
        if not mtp:
            self.config = self.config.replace(num_nextn_predict_layers=0)
        self._open: dict[Path, SafetensorsFile] = {}

    @cached_property
    def _have_kernels(self) -> bool:  # asked once a load, and not by those who only look: it may compile
        return have_kernels()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        run_jobs([shard.release for shard in self._open.values()])
        self._open.clear()

    def release(self) -> None:
        """Let the system forget the pages read so far."""
        for shard in self._open.values():
            shard.release()

    def check(self) -> list[Slot]:
        """Hold names, shapes and number formats against the config; return its slots.

        Raises:
            CheckpointError: of the subclass that says what does not fit, at the first tensor where it does not.
        """
        slots = []
        known: set[str] = set()
        for slot in iterate_slots(self.config):  # stops at the first that is missing, however many a config claims
            self.check_slot(slot)
            slots.append(slot)
            known.add(slot.name)
            if self.is_fp8(slot):
                known.add(scale_name(slot.name))
        for name in self.entries:
            if name not in known:
                self._refuse_unexpected(name)
        return slots

    def is_fp8(self, slot: Slot) -> bool:
        """Whether the slot's weight is stored in FP8."""
        return self.entries[slot.name].dtype == FP8

    def view(self, name: str, rows: slice | None = None) -> Tensor:
        """Show the stored tensor, or some of its rows, without copying it."""
        return self._shard(self.files[name]).view(name, rows)

    def show_piece(self, piece: Piece) -> Tensor:
        """Show the bytes of a piece; those of a shard are mapped once for all uses."""
        if piece.path in self._headers:
            return self._shard(piece.path).bytes[piece.start : piece.stop]
        return map_piece(piece)

    def read_ahead(self) -> ReadAhead:
        """A context in which the shards that hold tensors come into memory, in the order of their names."""
        return ReadAhead({file: self._shard(file).bytes for file in sorted(set(self.files.values()))})

    def _shard(self, file: Path) -> SafetensorsFile:
        if file not in self._open:
            self._open[file] = SafetensorsFile(file, self._headers[file])
        return self._open[file]

    def weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`, dequantised if it is stored in FP8 (its scale may lie in another shard)."""
        stored = self.view(name)
        if self.entries[name].dtype != FP8:
            return stored.to(dtype)
        return dequantize_weight(stored, self.view(scale_name(name)).float(), dtype)

    def read_rows(self, name: str, rows: slice, place: Tensor, scale_place: Tensor | None = None) -> None:
        """Write some rows (from a multiple of 128 on) into `place`, in its dtype, and check their numbers on the way.

        Args:
            scale_place: of the block scales, where `place` takes FP8 codes.

        Raises:
            ScaleError: a block scale or an FP8 code that is no usable number; `place` is written all the same.
        """
        stored = self.view(name, rows)
        if self.entries[name].dtype != FP8:
            place.copy_(stored)
            return
        scale = self.view(scale_name(name), block_rows(rows)).float()
        lowest, highest = torch.aminmax(scale)  # NaN if one of them is
        if scale_place is None:
            numbers = dequantize_into(stored, scale, place)
        else:
            scale_place.copy_(scale)
            place.copy_(stored)
            numbers = find_nan_code(stored) is None
        if not (numbers and 0 < lowest.item() <= highest.item() < inf):
            self.check_codes(name)  # says which element of the whole

    def plan_rows(self, name: str, rows: slice, place: Tensor, scale_place: Tensor | None = None) -> Transfer | None:
        """What `read_rows` does, for a kernel to do it; None where that cannot."""
        entry, columns = self.entries[name], prod(place.shape[1:])
        if place.device.type != "cpu" or not place.is_contiguous() or not self._have_kernels:
            return None
        to, count = place.data_ptr(), rows.stop - rows.start
        row_bytes = entry.n_bytes // entry.shape[0]
        start = self._shard(self.files[name]).address + entry.start + rows.start * row_bytes
        if entry.dtype != FP8:
            same = DTYPES[entry.dtype] == place.dtype
            return Transfer(name, start, 0, to, 0, count, row_bytes, COPY) if same else None
        scale = self.entries[scale_name(name)]
        scale_start = self._shard(self.files[scale.name]).address + scale.start
        form = FORM_OF_FP8.get(place.dtype)
        if form is None or scale.dtype != "F32" or scale_start % 4:
            return None
        scale_start += block_rows(rows).start * (scale.n_bytes // scale.shape[0])
        scale_to = 0 if scale_place is None else scale_place.data_ptr()
        return Transfer(name, start, scale_start, to, scale_to, count, columns, form)

    def check_numbers(self, slots: list[Slot]) -> None:
        """Look at the numbers that can be wrong: block scales, FP8 codes, and the MTP layer's copies.

        Raises:
            CheckpointError: a scale or code that is no usable number, or a copy that differs from its original.
        """
        originals = {slot.memory: slot.name for slot in slots if not slot.copy}
        for slot in slots:
            if self.is_fp8(slot):
                self.check_codes(slot.name)
            elif slot.copy:
                self.check_copy(slot.name, originals[slot.memory])
            self.release()

    def check_copy(self, name: str, original: str) -> None:
        """Refuse a copy that differs from its original."""
        for copied, kept in zip(self.view(name).split(4096), self.view(original).split(4096)):
            if copied.dtype != kept.dtype or not torch.equal(copied.view(torch.uint8), kept.view(torch.uint8)):
                problem = f"differs from {original}, of which it is the MTP layer's copy"
                mend = "take the file from a good copy, or load without the MTP layer (mtp=False, --without-mtp)"
                raise CheckpointError(problem, file=self.files[name], tensor=name, mend=mend)

    def check_codes(self, name: str) -> None:
        """Refuse block scales and FP8 codes that are no usable numbers."""
        scale = self.view(scale_name(name)).float()
        good = torch.isfinite(scale) & (scale > 0)
        if not bool(good.all()):
            i = int((~good).int().flatten().argmax())
            row, column = divmod(i, scale.shape[1])
            raise ScaleError(
                f"block ({row}, {column}) has the scale {scale.flatten()[i].item()}, not a positive finite number",
                file=self.files[scale_name(name)],
                tensor=scale_name(name),
                mend="take the file from a good copy",
            )
        if (position := find_nan_code(self.view(name))) is not None:
            row, column = divmod(position, self.entries[name].shape[1])
            raise ScaleError(f"element ({row}, {column}) is the FP8 code NaN", file=self.files[name], tensor=name)

    def check_slot(self, slot: Slot) -> None:
        """Refuse a tensor that is missing, or of another shape or format than its slot."""
        entry = self.entries.get(slot.name)
        if entry is None:
            mend = "the config and the files are of different models, or a shard is missing"
            if mtp_layer_of(slot.name, self.config):
                mend = "the MTP layer was dropped (Transformers does so); load without it: mtp=False, --without-mtp"
            raise MissingTensorError("is missing", file=self.folder, tensor=slot.name, mend=mend)
        place = {"file": self.files[slot.name], "tensor": slot.name}
        if entry.shape != slot.shape:
            raise ShapeError(f"has the shape {list(entry.shape)}, {CONFIG} says {list(slot.shape)}", **place)
        if entry.dtype == FP8 and slot.fp8:
            self._check_scale(slot)
        elif slot.fp32 and entry.dtype not in ("F32", "F64"):
            raise DtypeError(f"is stored in {entry.dtype}; the selection bias must be F32", **place)
        elif entry.dtype not in FLOATS:
            allowed = (*FLOATS, FP8) if slot.fp8 else FLOATS
            raise DtypeError(f"is stored in {entry.dtype}; its place allows {', '.join(allowed)}", **place)

    def _check_scale(self, slot: Slot) -> None:
        name = scale_name(slot.name)
        entry = self.entries.get(name)
        if entry is None:
            mend = "without its block scales an FP8 weight has no value"
            raise ScaleError("is missing in every shard", file=self.folder, tensor=name, mend=mend)
        place = {"file": self.files[name], "tensor": name}
        if entry.dtype not in ("F32", "F8_E8M0"):
            raise DtypeError(f"is stored in {entry.dtype}; block scales are F32 (or F8_E8M0)", **place)
        if entry.shape != scale_shape(slot.shape):
            needed = list(scale_shape(slot.shape))
            raise ShapeError(f"has the shape {list(entry.shape)}, blocks of 128 x 128 need {needed}", **place)

    def _refuse_unexpected(self, name: str) -> None:
        mend = "the config and the files are of different models"
        if name.endswith(SCALE_SUFFIX):
            mend = "its weight is not stored in FP8"
        elif mtp_layer_of(name, self.config):
            mend = "an MTP layer that the config does not count; load without it (mtp=False, --without-mtp)"
        elif ".indexer." in name:
            mend = "a V3.2 checkpoint with sparse attention, which this package does not build"
        raise UnexpectedTensorError("is unexpected", file=self.files[name], tensor=name, mend=mend)


def split_rows(shape: Sequence[int]) -> Iterator[slice]:
    """Cut a tensor into runs of rows that are whole blocks of 128, of about PIECE_ELEMENTS each."""
    width = prod(shape[1:])
    step = max(PIECE_ELEMENTS // (width * BLOCK), 1) * BLOCK
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def block_rows(rows: slice) -> slice:
    """The rows of block scales that belong to rows of a weight."""
    return slice(rows.start // BLOCK, -(-rows.stop // BLOCK))


def count_bytes(entries: dict[str, TensorEntry]) -> int:
    """Bytes of data that the entries span."""
    return sum(entry.n_bytes for entry in entries.values())


def count_elements(entry: TensorEntry) -> int:
    """Elements of a tensor, from its header."""
    return prod(entry.shape)
