"""A checkpoint folder opened for reading: its config, where its tensors lie, and their numbers.

    with StoredTensors("DIR") as stored:
        weight = stored.weight("model.layers.0.self_attn.o_proj.weight", torch.bfloat16)

Nothing from the folder is executed or unpickled: config.json, headers and numbers are all that is looked at.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import inf, prod
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.family import WRAPPED
from deepseek_v3.fp8.decode import dequantize_into, dequantize_weight
from deepseek_v3.fp8.quantize import BLOCK, find_nan_code
from deepseek_v3.native.build import have_kernels
from deepseek_v3.weights.digests import Piece, map_piece
from deepseek_v3.weights.errors import ConfigFileError, ScaleError, UnexpectedTensorError
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.memory_map import ReadAhead
from deepseek_v3.weights.names import Slot, mtp_layer_of, released_name, scale_name
from deepseek_v3.weights.safetensors_file import DTYPES, SafetensorsFile, TensorEntry
from deepseek_v3.weights.shards import read_headers
from deepseek_v3.weights.strict_json import read_json
from deepseek_v3.weights.transfer import COPY, FORM_OF_FP8, Transfer

CONFIG = "config.json"
MAX_CONFIG_BYTES = 2**20
PIECE_ELEMENTS = 2**24  # of a tensor that are read or converted at a time
FP8 = "F8_E4M3"


def read_keys(folder: str | PathLike) -> dict[str, Any]:
    """Read the config.json of a folder as it is.

    Raises:
        ConfigFileError: missing, or no JSON object.
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
    return read_json(path, MAX_CONFIG_BYTES, ConfigFileError)


def read_config(folder: str | PathLike) -> ModelConfig:
    """Read the config.json of a folder.

    Raises:
        ConfigFileError: unreadable, or a model that this package does not build.
    """
    return build_config(read_keys(folder), folder)


def build_config(keys: dict[str, Any], folder: str | PathLike) -> ModelConfig:
    """Make a config of the keys that were read in a folder.

    Raises:
        ConfigFileError: a model that this package does not build.
    """
    try:
        return ModelConfig.from_dict(keys)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ConfigFileError(str(error) or type(error).__name__, file=Path(folder) / CONFIG) from None


class StoredTensors:
    """Config and located tensors of a folder; use as a context manager.

    Attributes:
        config: with `num_nextn_predict_layers` 0 if the MTP layers were not asked for, or are wholly absent.
        keys: of config.json, as they stand there.
        entries: where every tensor lies, by released name; MTP layers that were not asked for are left out.
        files: the shard that holds each tensor.
        ignored: how many tensors of which kind have no meaning for the model.
        lost_mtp: the config counts MTP layers of which there is no tensor.
    """

    def __init__(self, folder: str | PathLike, *, mtp: bool = True, follow_links: bool = False):
        self.folder = Path(folder)
        self.keys = read_keys(folder)
        self.config = build_config(self.keys, folder)
        self._headers = read_headers(folder, follow_links=follow_links)
        self._open: dict[Path, SafetensorsFile] = {}
        self._begin()
        self._locate(mtp=mtp)
        self._settle_mtp(mtp=mtp)

    def _begin(self) -> None:
        self.files: dict[str, Path] = {}
        self.entries: dict[str, TensorEntry] = {}
        self.ignored: Counter[str] = Counter()

    def _settle_mtp(self, *, mtp: bool) -> None:
        found_mtp = any(mtp_layer_of(name, self.config) for name in self.entries)
        self.lost_mtp = mtp and self.config.num_nextn_predict_layers > 0 and not found_mtp
        if self.lost_mtp or not mtp:
            self.config = self.config.replace(num_nextn_predict_layers=0)

    def _locate(self, *, mtp: bool) -> None:
        _, prefix = WRAPPED.get(str(self.keys.get("model_type")), ("", ""))
        for file, header in self._headers.items():
            for stored, entry in header.entries.items():
                name, kind = released_name(stored, prefix)
                if name is None:
                    self.ignored[kind] += 1
                    continue
                if name in self.entries:
                    raise UnexpectedTensorError(f"occurs in {self.files[name].name} too", file=file, tensor=stored)
                if mtp or not mtp_layer_of(name, self.config):
                    self.entries[name], self.files[name] = entry, file

    @cached_property
    def _have_kernels(self) -> bool:  # asked once a load, and not by those who only look: it may compile
        return have_kernels()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        run_jobs([shard.release for shard in self._open.values()])
        self._open.clear()

    def release(self) -> None:
        """Let the system forget the pages read so far."""
        for shard in self._open.values():
            shard.release()

    def count_shards(self) -> int:
        """Return how many files hold it."""
        return len(set(self.files.values()))

    def is_fp8(self, slot: Slot) -> bool:
        """Whether the slot's weight is stored in FP8."""
        return self.entries[slot.name].dtype == FP8

    def view(self, name: str, rows: slice | None = None) -> Tensor:
        """Show the stored tensor, or some of its rows, without copying it."""
        return self._shard(self.files[name]).view(self.entries[name].name, rows)  # its name in the file

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
        """Return the weight in `dtype`, dequantized if it is stored in FP8 (its scale may lie in another shard)."""
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
        scale_start = self._shard(self.files[scale_name(name)]).address + scale.start
        form = FORM_OF_FP8.get(place.dtype)
        if form is None or scale.dtype != "F32" or scale_start % 4:
            return None
        scale_start += block_rows(rows).start * (scale.n_bytes // scale.shape[0])
        scale_to = 0 if scale_place is None else scale_place.data_ptr()
        return Transfer(name, start, scale_start, to, scale_to, count, columns, form)

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
