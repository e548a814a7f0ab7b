"""The folder of a run: one training at a time, only what a training made, every file whole.

    RUN/   options.json  config.json  tokenizer.json  tokenizer_config.json  metrics.jsonl  report.html  checkpoints/

The lock is the system's (`flock`): it goes with the process, however that ends. The file `.lock` may stay; it means
nothing by itself.
"""

import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deepseek_v3.training.options import OptionsError
from deepseek_v3.weights.files import replace_file

OPTIONS, LOCK = "options.json", ".lock"


class RunLock:
    """Held by the one training of a run folder."""

    def __init__(self, run: Path) -> None:
        """Make the folder, and lock it.

        Raises:
            OptionsError: another training holds it.
        """
        import fcntl  # Linux and macOS

        self.run, self.made = run, [path for path in (run, *run.parents) if not path.exists()]
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OptionsError(
                f"--run {run}: another training is at work in it; wait for it, or name another folder"
            ) from None
        except OSError:  # a file system without locks: better unlocked than not at all
            pass
        self.release = weakref.finalize(self, _release, handle, run / LOCK)

    def give_up(self) -> None:
        """Release, and take away the folders that were made for it and are still empty."""
        self.release()
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()


def _release(handle: int, path: Path) -> None:
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            path.unlink()
    os.close(handle)


def standing_folder(run: Path) -> Path:
    """Return the run folder, or the nearest above it that is there."""
    return next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())


def check_run_folder(run: Path) -> None:
    """Refuse a run folder that cannot be written, before anything else takes its time.

    Raises:
        OptionsError: it is a file or below one, or writing is not allowed there.
    """
    standing = standing_folder(run)
    problem = "is not a folder" if not standing.is_dir() else "cannot be written"
    if problem == "is not a folder" or not os.access(standing, os.W_OK | os.X_OK):
        raise OptionsError(f"--run {run}: {standing} {problem}; name another folder")


def check_ours(run: Path) -> None:
    """Refuse to begin a run in a folder that holds anything of somebody's.

    Raises:
        OptionsError: naming what lies there.
    """
    if not run.is_dir():
        return
    found = {name for name in os.listdir(run) if not (name.startswith(".") and name.endswith(".new"))}
    if OPTIONS not in found and (foreign := sorted(found - {LOCK})):
        raise OptionsError(f"--run {run} holds {foreign[0]}, which no training put there; name a new or empty folder")


def write_files(run: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files of a run, each as a whole; those that did not change are left alone.

    Raises:
        OptionsError: no room, no permission; what stood there still stands.
    """
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        try:
            replace_file(run / name, data)
        except OSError as error:
            problem = f"cannot be written ({(error.strerror or str(error)).lower()}, {len(data):,} bytes)"
            raise OptionsError(f"{run / name} {problem}; make room or allow writing, and start again") from None
