"""SHA-256 of every file of a folder, written with it and verified when it is read.

    {"format": 1, "files": {"model.safetensors": {"bytes": 123, "sha256": "..."}}}

The manifest notices what the .safetensors format cannot: one flipped bit in the data. It has one spelling only, so a
flipped bit in the manifest itself is noticed too. It guards against damage, not against somebody who can rewrite both.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from deepseek_v3.weights.errors import CheckpointError, DigestError, clip

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
GUARDED = (".safetensors", ".index.json", "config.json", "tokenizer.json", "tokenizer_config.json")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Digest:
    """What a file must be."""

    n_bytes: int
    sha256: str


def digest_file(path: Path) -> Digest:
    """Hash one file in pieces of 1 MB."""
    hasher = hashlib.sha256()
    piece = bytearray(2**20)
    n_bytes = 0
    with path.open("rb", buffering=0) as stream:
        while n := stream.readinto(piece):
            hasher.update(memoryview(piece)[:n])
            n_bytes += n
    return Digest(n_bytes, hasher.hexdigest())


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, Digest]:
    """Hash the named files, one thread per core (hashing leaves the interpreter free)."""
    names = sorted(names)
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        return dict(zip(names, pool.map(lambda name: digest_file(folder / name), names)))


def list_files(folder: Path) -> set[str]:
    """Every regular file below the folder, by its name relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def spell_manifest(digests: dict[str, Digest]) -> bytes:
    """The one spelling of a manifest."""
    files = {name: {"bytes": digest.n_bytes, "sha256": digest.sha256} for name, digest in sorted(digests.items())}
    return (json.dumps({"format": 1, "files": files}, indent=1) + "\n").encode("ascii")


def write_manifest(folder: Path, *, except_for: Iterable[str] = ()) -> None:
    """Hash all that is in the folder and write the manifest beside it."""
    digests = digest_files(folder, list_files(folder) - {MANIFEST, *except_for})
    (folder / MANIFEST).write_bytes(spell_manifest(digests))


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
        files = json.loads(raw)["files"]
        digests = {name: Digest(entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        canonical = spell_manifest(digests) == raw
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise DigestError("is not a manifest that this package wrote", file=path, mend=mend) from None
    if not canonical:
        raise DigestError("was damaged or edited: it is not in its one spelling", file=path, mend=mend)
    return digests


def verify_manifest(folder: str | PathLike, *, skip: bool = False) -> bool:
    """Compare every file that the manifest lists; False when there is no manifest to compare with.

    Raises:
        DigestError: a listed file is absent or differs, or a file that will be read is not listed.
    """
    folder = Path(folder)
    if skip:
        log.warning("%s: the SHA-256 manifest is NOT verified, as asked", clip(str(folder), 300))
        return False
    digests = read_manifest(folder)
    if digests is None:
        log.info("%s: no %s, so damage to the data cannot be noticed", clip(str(folder), 300), MANIFEST)
        return False
    mend = "take the file from a good copy, or skip the verification (skip_verify=True, --skip-verify)"
    for name, digest in digests.items():
        if not _inside(name) or not (folder / name).is_file():
            raise DigestError("the manifest lists it, but it is not there", file=folder / clip(name), mend=mend)
        n_bytes = (folder / name).stat().st_size
        if n_bytes != digest.n_bytes:
            raise DigestError(f"has {n_bytes:,} bytes, not {digest.n_bytes:,}", file=folder / name, mend=mend)
    for name in sorted(path.name for path in folder.iterdir()):
        if name.endswith(GUARDED) and name not in digests:
            raise DigestError("was not written with the rest: the manifest does not list it", file=folder / name)
    for name, found in digest_files(folder, digests).items():
        if found != digests[name]:
            raise DigestError("its bytes are not the ones that were written (SHA-256)", file=folder / name, mend=mend)
    return True


def _inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
