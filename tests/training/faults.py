"""A training whose Nth write, flush or rename fails: python -m tests.training.faults FOLDER HOW EVERY

HOW is ENOSPC, EIO, EFBIG or KILL. The process imports everything once and forks for each try; one line a try that went
wrong, and at the end how many there were.
"""

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # which torch.optim imports in each fork otherwise, and takes five times the training

import deepseek_v3.commands.samples
import deepseek_v3.training.report
import deepseek_v3.training.session  # noqa: F401  # so that a fork need not
from deepseek_v3.cli import main

TINY = (
    "vocab_size=331 hidden_size=22 intermediate_size=26 moe_intermediate_size=7 num_hidden_layers=2 q_lora_rank=11 "
    "n_routed_experts=4 n_group=2 topk_group=1 num_experts_per_tok=2"  # few: each expert is nine writes of a checkpoint
)
SIZES = (
    "--steps 2 --save-every 1 --eval-every 0 --seq-len 13 --batch-size 2 --micro-batch 2 --eval-kilobytes 1 --keep 1"
)
CALLS = ("write", "pwrite", "fsync", "rename", "replace")


class Faults:
    """Counts what reaches the disk, and fails once."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.count, self.names = at, how, 0, []

    def meet(self, name: str) -> None:
        """Count a call; fail if it is the one."""
        self.names.append(name)
        self.count += 1
        if self.count == self.at and self.how == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.at:
            number = getattr(errno, self.how)
            raise OSError(number, os.strerror(number))

    def guard(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, counted."""

        def guarded(*arguments: Any, **options: Any) -> Any:
            self.meet(name)
            return call(*arguments, **options)

        return guarded

    def install(self, folder: Path) -> None:
        """Put counted calls in the place of those of `os`, and counted files in that of files below the folder."""
        for name in CALLS:
            setattr(os, name, self.guard(name, getattr(os, name)))
        plain = io.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = plain(file, mode, *arguments, **options)
            ours = isinstance(file, str | Path) and str(file).startswith(str(folder))
            return Guarded(stream, self) if ours and set(mode) & set("wax+") else stream

        io.open = builtins.open = opened  # type: ignore[assignment]


class Guarded:
    """A file whose writes and closing flush are counted."""

    def __init__(self, stream: Any, faults: Faults) -> None:
        self._stream, self._faults = stream, faults

    def write(self, data: Any) -> int:
        """Write, or fail."""
        self._faults.meet("write")
        return self._stream.write(data)

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def in_child(work: Callable[[], int], log: Path) -> int:
    """Run in a fork with its output in a file; return the exit code, negative for a signal."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(i, "w"), write_through=True) for i in (1, 2))
        code = work()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def train(run: Path, *, resume: bool) -> list[str]:
    """Return the words of a training."""
    if resume:
        return ["train", "--run", str(run), "--resume"]
    data = str(run.parent / "text.txt")
    words = f"{SIZES} --precision fp32 --threads 1 --set {TINY} --sample-prompts x".split()
    return ["train", "--run", str(run), "--data", data, *words]


def state_of(run: Path) -> list[bytes]:
    """Return the tensors of the last checkpoint, as they are stored."""
    folder = run / "checkpoints" / "step-00000002"
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def try_fault(folder: Path, at: int, how: str, wanted: list[bytes]) -> str:
    """Run with a fault, go on as the folder says, and return what went wrong."""
    import shutil

    run, log = folder / f"run-{how}-{at}", folder / f"log-{how}-{at}"

    def faulty() -> int:
        Faults(at, how).install(run)
        return main(train(run, resume=False))

    code = in_child(faulty, log)
    said = log.read_text(errors="replace")
    if "Traceback" in said or "nobody foresaw" in said or (code and code != -9 and "deepseek-v3" not in said):
        return f"{how} at {at}: {said[-300:]!r}"
    if code:
        saved = any((run / "checkpoints").glob("step-*"))
        code = in_child(lambda: main(train(run, resume=saved)), log)
        if code and "go on with --resume" in log.read_text(
            errors="replace"
        ):  # whole, and killed before its last rename
            code = in_child(lambda: main(train(run, resume=True)), log)
    if code or state_of(run) != wanted:
        return f"{how} at {at}: then code {code}, {log.read_text(errors='replace')[-300:]!r}"
    shutil.rmtree(run)
    log.unlink()
    return ""


def report(folder: Path, how: str, every: int) -> None:
    """Try every so manieth fault and print what went wrong."""
    text = "\n\n".join(f"passage {i}: " + " ".join(str(i * j % 89) for j in range(40)) for i in range(60))
    (folder / "text.txt").write_text(text)
    run, counted = folder / "unbroken", folder / "calls"

    def unbroken() -> int:
        faults = Faults(0, how)
        faults.install(run)
        code = main(train(run, resume=False))
        os.write(os.open(counted, os.O_WRONLY | os.O_CREAT), "\n".join(faults.names).encode())
        return code

    assert in_child(unbroken, folder / "log") == 0, (folder / "log").read_text()
    calls = counted.read_text().split()
    turns = [i for i, name in enumerate(calls, 1) if name != "write" or calls[i - 2] != name]  # one of many tensors
    wanted, tried = state_of(run), (turns[::every] if every > 1 else range(1, len(calls) + 1))
    for at in tried:
        if problem := try_fault(folder, at, how, wanted):
            print(problem, flush=True)
    print(f"{len(tried)} of {len(calls)} calls: {', '.join(sorted(set(calls)))}")


if __name__ == "__main__":
    report(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
