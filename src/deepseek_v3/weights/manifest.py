"""SHA-256 of every file of a folder in pieces of 4 MB, written with it and verified when it is read.

    {"format": 2, "piece_bytes": 4194304, "files": {"model.safetensors": {"bytes": 123, "sha256": ["..."]}}}

The manifest notices what the .safetensors format cannot: one flipped bit in the data. It has one spelling only, so a
flipped bit in the manifest itself is noticed too. It guards against damage, not against somebody who can rewrite both.
A file of one piece has the digest that `sha256sum` prints. Still read: pieces of another size, and format 1, which has
the digest of every whole file.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from deepseek_v3.weights.digests import (
    MAPPED_BYTES,
    PIECE_BYTES,
    Piece,
    cut_file,
    digest_group,
    digest_pieces,
    group_up,
    map_piece,
)
from deepseek_v3.weights.errors import CheckpointError, DigestError, clip
from deepseek_v3.weights.jobs import run_jobs

MANIFEST = "manifest.json"
SHARDS = "shards"  # in a checkpoint of many processes the folder of their parts
MAX_MANIFEST_BYTES = 32 * 2**20  # 12 MB for the released checkpoint, 23 MB for it in BF16
GUARDED = (".safetensors", ".index.json", "config.json", "tokenizer.json", "tokenizer_config.json")
MEND = "take the file from a good copy, or skip the verification (skip_verify=True, --skip-verify)"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Digest:
    """What a file must be: its length, and the SHA-256 of each of its pieces, or of all of it as a text (format 1)."""

    n_bytes: int
    sha256: tuple[str, ...] | str
    piece_bytes: int = PIECE_BYTES

    def cut(self, path: Path) -> list[tuple[Piece, str]]:
        """The pieces of the file, each with the digest that it must have."""
        if isinstance(self.sha256, str):
            return [(Piece(path, 0, self.n_bytes), self.sha256)]
        return list(zip(cut_file(path, self.n_bytes, self.piece_bytes), self.sha256, strict=True))


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, Digest]:
    """Hash the named files."""
    sizes = {name: (folder / name).stat().st_size for name in sorted(names)}
    cuts = {name: cut_file(folder / name, n_bytes, PIECE_BYTES) for name, n_bytes in sizes.items()}
    digests = iter(digest_pieces([piece for pieces in cuts.values() for piece in pieces]))
    found = {name: tuple(next(digests) for _ in pieces) for name, pieces in cuts.items()}
    return {name: Digest(sizes[name], found[name], PIECE_BYTES) for name in cuts}


def list_files(folder: Path) -> set[str]:
    """Every regular file below the folder, by its name relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def spell_manifest(digests: dict[str, Digest], number: int = 2, piece_bytes: int = PIECE_BYTES) -> bytes:
    """The one spelling of a manifest of format 1 or 2."""
    files = {name: {"bytes": digest.n_bytes, "sha256": digest.sha256} for name, digest in sorted(digests.items())}
    head: dict[str, Any] = {"format": 1} if number == 1 else {"format": 2, "piece_bytes": piece_bytes}
    return (json.dumps({**head, "files": files}, indent=1) + "\n").encode("ascii")


def write_manifest(folder: Path, *, except_for: Iterable[str] = ()) -> None:
    """Hash all that is in the folder and write the manifest beside it."""
    digests = digest_files(folder, list_files(folder) - {MANIFEST, *except_for})
    (folder / MANIFEST).write_bytes(spell_manifest(digests, piece_bytes=PIECE_BYTES))


def read_manifest(folder: str | PathLike) -> dict[str, Digest] | None:
    """Read the manifest of a folder; None when there is none (a checkpoint from elsewhere).

    Raises:
        DigestError: the manifest is not in its one spelling, so it was damaged or edited.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    mend = "restore the file, or skip the verification (skip_verify=True, --skip-verify)"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DigestError(f"a manifest above {MAX_MANIFEST_BYTES:,} bytes", file=path, mend=mend)
        raw = path.read_bytes()
        content = json.loads(raw)
        number, piece_bytes = content["format"], content.get("piece_bytes", PIECE_BYTES)
        if type(piece_bytes) is not int or not 0 < piece_bytes <= MAPPED_BYTES:
            raise ValueError(f"{piece_bytes=}")
        digests = {name: _read_entry(entry, number, piece_bytes) for name, entry in content["files"].items()}
        canonical = spell_manifest(digests, number, piece_bytes) == raw
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise DigestError("is not a manifest that this package wrote", file=path, mend=mend) from None
    if not canonical:
        raise DigestError("was damaged or edited: it is not in its one spelling", file=path, mend=mend)
    return digests


def _read_entry(entry: dict[str, Any], number: int, piece_bytes: int) -> Digest:
    n_bytes, sha256 = entry["bytes"], entry["sha256"]
    if number == 1 and isinstance(sha256, str):
        return Digest(n_bytes, sha256)
    if number != 2 or not isinstance(sha256, list) or len(sha256) != max(-(-n_bytes // piece_bytes), 1):
        raise ValueError(f"{number=}: not a digest for each piece of {n_bytes} bytes")
    return Digest(n_bytes, tuple(sha256), piece_bytes)


def verify_manifest(folder: str | PathLike, *, skip: bool = False) -> bool:
    """Compare every file that the manifest lists; False when there is no manifest to compare with.

    Raises:
        DigestError: a listed file is absent or differs, or a file that will be read is not listed.
    """
    expected = list_pieces(folder, skip=skip)
    verify_pieces(expected or [])
    return expected is not None


def list_pieces(folder: str | PathLike, *, skip: bool = False) -> list[tuple[Piece, str]] | None:
    """Hold names and lengths against the manifest; return what remains to be hashed, None without a manifest.

    Raises:
        DigestError: as `verify_manifest`, but for the bytes.
    """
    folder = Path(folder)
    if skip:
        log.warning("%s: the SHA-256 manifest is NOT verified, as asked", clip(str(folder), 300))
        return None
    digests = read_manifest(folder)
    if digests is None:
        log.info("%s: no %s, so damage to the data cannot be noticed", clip(str(folder), 300), MANIFEST)
        return None
    for name, digest in digests.items():
        if not _inside(name) or not (folder / name).is_file():
            raise DigestError("the manifest lists it, but it is not there", file=folder / clip(name), mend=MEND)
        n_bytes = (folder / name).stat().st_size
        if n_bytes != digest.n_bytes:
            raise DigestError(f"has {n_bytes:,} bytes, not {digest.n_bytes:,}", file=folder / name, mend=MEND)
    read = [*folder.iterdir(), *(folder / SHARDS).glob("*")]
    for name in sorted(path.relative_to(folder).as_posix() for path in read):
        if name.endswith(GUARDED) and name not in digests:
            raise DigestError("was not written with the rest: the manifest does not list it", file=folder / name)
    return [piece for name, digest in digests.items() for piece in digest.cut(folder / name)]


def verify_pieces(expected: Sequence[tuple[Piece, str]]) -> None:
    """Hash pieces on all cores, some at a time in each.

    Raises:
        DigestError: the first whose bytes are not those that were written.
    """
    run_jobs([partial(verify_group, group) for group in group_up(expected)])


def verify_group(expected: Sequence[tuple[Piece, str]], show: Callable[[Piece], Tensor] = map_piece) -> None:
    """Hash the pieces of a group in this thread; `show` as for `digest_group`."""
    digests = digest_group([piece for piece, _ in expected], show)
    for (piece, sha256), found in zip(expected, digests, strict=True):
        if found != sha256:
            raise DigestError("its bytes are not the ones that were written (SHA-256)", file=piece.path, mend=MEND)


def _inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
