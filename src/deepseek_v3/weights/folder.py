"""A folder that is replaced as one: written beside, flushed to disk, and swapped in by one rename.

    with atomic_folder("runs/a/checkpoint") as beside:
        (beside / "notes.txt").write_text("...")

Whoever is killed at any moment leaves either the old folder or the new one, never a mixture. What a kill leaves beside
(`.NAME.saving`, `.NAME.old`, `.NAME.lock`) is cleared by the next save or load. Files of the old folder that its
manifest does not list (a user's notes, logs) are carried over. Python's exceptions clear up at once.
"""

import ctypes
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from deepseek_v3.weights.errors import DigestError, SaveError
from deepseek_v3.weights.files import flush_path
from deepseek_v3.weights.manifest import GUARDED, MANIFEST, read_manifest, write_manifest

UNFINISHED = ".unfinished"  # inside `.NAME.saving` until every byte of it is on disk
SPARE_BYTES = 2**20  # room for folders and small files beside the tensors
PATIENCE_S = 0.5  # a reader that clears leftovers holds the lock for a moment; a writer for as long as it writes


@contextmanager
def atomic_folder(folder: str | PathLike, *, n_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends well it becomes `folder`, manifest included.

    Args:
        folder: absent, empty, written by us before (it has a manifest), or without any checkpoint file.
        n_bytes: what will be written; asked for before the first byte is.
    Raises:
        SaveError: no room, no permission, another writer, or a folder that is not ours to replace.
    """
    target = Path(os.path.realpath(folder))
    beside = target.parent / f".{target.name}.saving"
    with _naming_the_path(target, n_bytes), _sole_writer(target):
        _clear_leftovers(target)
        _check_replaceable(target)
        _check_room(target, n_bytes)
        beside.mkdir()
        try:
            (beside / UNFINISHED).touch()
            yield beside
            write_manifest(beside, except_for=[UNFINISHED])
            flush_folder(beside)
            (beside / UNFINISHED).unlink()
            if target.exists():
                beside.chmod(stat.S_IMODE(target.stat().st_mode))
            flush_path(beside)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _swap_or_undo(beside, target)
        flush_path(target.parent)
        _retire(beside, target)


def recover_folder(folder: str | PathLike) -> None:
    """Finish or undo what a killed save left beside `folder`; quietly leave it where that is not ours to do."""
    target = Path(os.path.realpath(folder))
    lock = target.parent / f".{target.name}.lock"
    if any(path.exists() for path in (*_leftovers(target), lock)):
        with suppress(OSError), _sole_writer(target, patience_s=0):
            _clear_leftovers(target)


def flush_folder(folder: Path) -> None:
    """Bring every file and folder below `folder` to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush_path(Path(parent) / name)
        flush_path(Path(parent))


def _leftovers(target: Path) -> tuple[Path, Path]:
    return target.parent / f".{target.name}.saving", target.parent / f".{target.name}.old"


def _clear_leftovers(target: Path) -> None:
    saving, old = _leftovers(target)
    if old.exists() and not target.exists():
        old.rename(target)  # killed between the two renames of a system that cannot swap
    if saving.exists() and not target.exists() and not (saving / UNFINISHED).exists() and (saving / MANIFEST).exists():
        saving.rename(target)  # complete and flushed; only the rename was missing
    for leftover in (saving, old):
        if leftover.exists():
            _retire(leftover, target)


def _retire(folder: Path, target: Path) -> None:
    """Delete a folder that was replaced (or never finished), after handing on the files that are not ours."""
    if folder.exists() and target.exists() and not (folder / UNFINISHED).exists():
        try:
            ours = {MANIFEST, *(read_manifest(folder) or ())}
        except DigestError:
            ours = {MANIFEST}
        _hand_over(folder, target, ours)
    shutil.rmtree(folder, ignore_errors=True)


def _hand_over(folder: Path, target: Path, ours: set[str], below: str = "") -> None:
    """Move what is not ours as it is: files, links, folders with all that is in them, their modes."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = below + entry.name
        there = target / entry.name
        within = any(file.startswith(f"{name}/") for file in ours)
        if entry.is_dir(follow_symlinks=False) and (within or there.is_dir()):
            there.mkdir(exist_ok=True)
            _hand_over(Path(entry.path), there, ours, f"{name}/")
        elif name not in ours and not os.path.lexists(there):
            os.rename(entry.path, there)


def _check_replaceable(target: Path) -> None:
    with suppress(FileNotFoundError):  # the folder we are in was deleted
        here = Path(os.path.realpath(os.getcwd()))
        if target in (here, *here.parents):
            raise SaveError("is the folder you are in, or holds it", file=target, mend="name a new one below it")
    if os.path.ismount(target):
        raise SaveError("is a mount point, which cannot be swapped", file=target, mend="name a folder below it")
    if not target.exists() or (target / MANIFEST).exists():
        return
    if not target.is_dir():
        raise SaveError("is a file, not a folder", file=target)
    foreign = sorted(name for name in os.listdir(target) if name.endswith(GUARDED))
    if foreign:
        mend = "save into a new or empty folder"
        raise SaveError(
            f"holds a checkpoint that was not written here ({foreign[0]}, no {MANIFEST})", file=target, mend=mend
        )


def _check_room(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if n_bytes + SPARE_BYTES > free:
        mend = "free some room or save elsewhere (the previous checkpoint is kept until the new one is whole)"
        raise SaveError(f"needs {n_bytes + SPARE_BYTES:,} bytes, {free:,} are free", file=target, mend=mend)


def _swap_or_undo(beside: Path, target: Path) -> None:
    """Swap; where the system refuses, the old folder is back in its place, and nothing lies beside it."""
    try:
        _swap(beside, target)
    except OSError:
        _, old = _leftovers(target)
        if old.exists() and not target.exists():
            old.rename(target)
        if target.exists() and beside.exists():
            shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(beside: Path, target: Path) -> None:
    """Put `beside` in the place of `target`, whose old content is then in `beside` or `.NAME.old`, or gone."""
    if not target.exists():
        beside.rename(target)
    elif not _exchange(beside, target):
        _, old = _leftovers(target)
        target.rename(old)
        beside.rename(target)
        flush_path(target.parent)
        _retire(old, target)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step where the system can (Linux: renameat2 with RENAME_EXCHANGE)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2
    return renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


@contextmanager
def _sole_writer(target: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold `.NAME.lock` while writing; the system drops the lock of a process that dies."""
    import fcntl  # Linux and macOS

    path = target.parent / f".{target.name}.lock"
    target.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + patience_s
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() < give_up:
                time.sleep(0.02)
                continue
            raise SaveError(
                "another process is saving here", file=target, mend="wait for it, or save elsewhere"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)  # the holder before us removed the file that we had opened: try the new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def _naming_the_path(target: Path, n_bytes: int) -> Iterator[None]:
    """Turn an OSError of the system into a SaveError that names the folder and the bytes needed."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        problem = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem += f" (the checkpoint needs {n_bytes + SPARE_BYTES:,} bytes)"
        mend = "nothing was changed there; make room, allow writing, or save elsewhere"
        raise SaveError(f"cannot be written: {problem}", file=target, mend=mend) from error
