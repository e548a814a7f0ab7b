"""Tensors in a folder: one .safetensors file, or shards with an index that names the shard of each tensor.

    save_tensors({"w": torch.ones(3)}, "runs/a/state")      atomic, durable, with a SHA-256 manifest
    tensors = load_tensors("runs/a/state")                  verified; a CheckpointError names file and tensor

    with atomic_folder("runs/a/checkpoint") as beside:      several things that must change together
        write_tensors(tensors, beside, stem="optimizer")

Released layout: `model.safetensors`, or `model-00001-of-00163.safetensors` ... and `model.safetensors.index.json`.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path

import torch

from deepseek_v3.weights.errors import CheckpointError, DtypeError, IndexFileError, UnsafePathError, clip
from deepseek_v3.weights.folder import atomic_folder, recover_folder
from deepseek_v3.weights.manifest import verify_manifest
from deepseek_v3.weights.safetensors_file import CODES, Header, SafetensorsFile, layout_header, read_header

SHARD_BYTES = 4 * 10**9
MAX_INDEX_BYTES = 16 * 2**20  # the released one has 9 MB
Spec = tuple[str, torch.dtype, tuple[int, ...]]
__all__ = ["atomic_folder", "load_tensors", "read_tensors", "recover_folder", "save_tensors", "write_tensors"]


@dataclass(frozen=True)
class ShardPlan:
    """Which tensors go into which file, decided before the first byte is written."""

    files: dict[str, list[Spec]]
    total_size: int


def plan_shards(specs: Iterable[Spec], *, stem: str = "model", shard_bytes: int | None = None) -> ShardPlan:
    """Fill shards in the given order, each up to `shard_bytes` of data (a larger tensor has one of its own).

    Raises:
        ValueError: shard_bytes below 1.
        DtypeError: a number format that .safetensors files of ours do not hold.
    """
    limit = SHARD_BYTES if shard_bytes is None else shard_bytes
    if limit < 1:
        raise ValueError(
            f"shard_bytes={shard_bytes} is not positive; give the data bytes of a shard, e.g. {SHARD_BYTES:,}"
        )
    shards: list[list[Spec]] = [[]]
    filled = total = 0
    for name, dtype, shape in specs:
        if dtype not in CODES:
            raise DtypeError(
                f"{dtype} cannot be stored", tensor=name, mend=f"cast to one of {', '.join(CODES.values())}"
            )
        n_bytes = prod(shape) * dtype.itemsize
        if shards[-1] and filled + n_bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, dtype, shape))
        filled += n_bytes
        total += n_bytes
    if len(shards) == 1:
        return ShardPlan({f"{stem}.safetensors": shards[0]}, total)
    return ShardPlan({f"{stem}-{i:05}-of-{len(shards):05}.safetensors": s for i, s in enumerate(shards, 1)}, total)


def write_shards(
    plan: ShardPlan,
    fetch: Callable[[str], torch.Tensor | Iterable[torch.Tensor]],
    folder: Path,
    *,
    stem: str = "model",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the planned files, fetching one tensor (or its rows, piece by piece) at a time; an index if several."""
    for file, specs in plan.files.items():
        head, order = layout_header(specs, metadata)
        expected = {name: (dtype, shape) for name, dtype, shape in specs}
        with (folder / file).open("wb") as stream:
            stream.write(head)
            for name in order:
                dtype, shape = expected[name]
                pieces = fetch(name)
                elements = 0
                for piece in [pieces] if isinstance(pieces, torch.Tensor) else pieces:
                    assert piece.dtype == dtype, f"{name} was planned as {dtype}, not {piece.dtype}"
                    stream.write(raw_bytes(piece))
                    elements += piece.numel()
                assert elements == prod(shape), f"{name} was planned with {prod(shape)} elements, not {elements}"
    if len(plan.files) > 1:
        weight_map = {name: file for file, specs in plan.files.items() for name, _, _ in specs}
        index = {"metadata": {"total_size": plan.total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="ascii")


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as they are stored."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    folder: str | PathLike,
    *,
    stem: str = "model",
    metadata: dict[str, str] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write tensors into an existing folder, plainly: for the inside of an `atomic_folder`."""
    specs = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    plan = plan_shards(specs, stem=stem, shard_bytes=shard_bytes)
    write_shards(plan, tensors.__getitem__, Path(folder), stem=stem, metadata=metadata)


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    folder: str | PathLike,
    *,
    metadata: dict[str, str] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Replace `folder` by one that holds exactly these tensors: atomic, durable, with a manifest.

    Raises:
        SaveError: as `atomic_folder`; what stood there before still stands.
    """
    n_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    with atomic_folder(folder, n_bytes=n_bytes) as beside:
        write_tensors(tensors, beside, metadata=metadata, shard_bytes=shard_bytes)


def load_tensors(folder: str | PathLike, *, stem: str = "model", skip_verify: bool = False) -> dict[str, torch.Tensor]:
    """Verify the manifest, then read every tensor into memory of its own, on the CPU.

    Raises:
        CheckpointError: of the subclass that says what is wrong.
    """
    recover_folder(folder)
    verify_manifest(folder, skip=skip_verify)
    return read_tensors(folder, stem=stem)


def read_tensors(folder: str | PathLike, *, stem: str = "model") -> dict[str, torch.Tensor]:
    """Read every tensor of a folder whose manifest was verified already."""
    tensors = {}
    for file, header in read_headers(folder, stem=stem).items():
        with SafetensorsFile(file, header) as shard:
            tensors.update({name: shard.view(name).clone() for name in header.entries})
    return tensors


def read_headers(folder: str | PathLike, *, stem: str = "model", follow_links: bool = False) -> dict[Path, Header]:
    """Read every header of a folder and hold it against the index.

    Returns:
        header by shard; each tensor occurs in exactly one shard.
    Raises:
        CheckpointError: no tensors here, or index and shards do not agree.
    """
    folder = Path(folder)
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.exists():
        if not single.exists():
            raise CheckpointError(f"holds neither {single.name} nor {index.name}", file=folder)
        check_inside(folder, single.name, single, follow_links)
        return {single: read_header(single)}
    weight_map, total_size = read_index(index)
    if single.exists():
        raise IndexFileError(f"{single.name} lies beside it: which one counts?", file=index, mend="remove one of them")
    return _hold_against_headers(folder, index, weight_map, total_size, follow_links)


def read_index(index: Path) -> tuple[dict[str, str], int | None]:
    """Read the index: the shard's file name of each tensor, and the total that it claims (None: no claim).

    Raises:
        IndexFileError: malformed; UnsafePathError: a file name that is more than a name.
    """
    from deepseek_v3.weights.strict_json import read_json

    content = read_json(index, MAX_INDEX_BYTES, IndexFileError)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}  # converters write null
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict) or not weight_map:
        raise IndexFileError("needs a filled 'weight_map' and a 'metadata' that are objects", file=index)
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise IndexFileError(
                f"its file is {type(file).__name__} {clip(repr(file))}, not a name", file=index, tensor=name
            )
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}\.safetensors", file):
            mend = "a shard lies in the index's own folder and is named like model-00001-of-00002.safetensors"
            raise UnsafePathError(
                f"its file {clip(repr(file))} is not a plain name", file=index, tensor=name, mend=mend
            )
    total = metadata.get("total_size")
    if total is not None and (not isinstance(total, (int, float)) or isinstance(total, bool) or total != int(total)):
        raise IndexFileError(f"total_size is {clip(repr(total))}, not a whole number", file=index)
    return weight_map, None if total is None else int(total)


def _hold_against_headers(
    folder: Path, index: Path, weight_map: dict[str, str], total_size: int | None, follow_links: bool
) -> dict[Path, Header]:
    claimed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        claimed.setdefault(file, set()).add(name)
    located: dict[Path, Header] = {}
    for file, names in sorted(claimed.items()):
        path = folder / file
        if not path.exists():
            raise IndexFileError(f"names the shard {file}, which is not there", file=index, tensor=min(names))
        check_inside(folder, file, path, follow_links)
        located[path] = read_header(path)
        entries = located[path].entries
        if absent := names - entries.keys():
            raise IndexFileError(f"is not in {file}, where the index puts it", file=index, tensor=min(absent))
        if stray := entries.keys() - names:
            where = weight_map.get(min(stray))
            said = f"the index puts it into {where}" if where else "the index does not name it"
            raise IndexFileError(f"lies in this shard, but {said}", file=path, tensor=min(stray))
    total = sum(entry.n_bytes for header in located.values() for entry in header.entries.values())
    if total_size not in (None, total):
        raise IndexFileError(f"total_size is {total_size:,}, the shards hold {total:,} bytes of tensors", file=index)
    return located


def check_inside(folder: Path, name: str, path: Path, follow_links: bool) -> None:
    """Refuse a shard that is no regular file, or a link that leaves its folder."""
    if not path.is_file():
        raise UnsafePathError("is not a regular file", file=path)
    real = Path(os.path.realpath(path))
    if not follow_links and real.parent != Path(os.path.realpath(folder)):
        mend = "copy the file here, or allow links (follow_links=True, --follow-links), as in a download cache"
        raise UnsafePathError(
            f"{clip(name)} is a link that leaves the folder, to {clip(str(real), 300)}", file=path, mend=mend
        )
