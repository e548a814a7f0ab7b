"""From `deepseek-v3 train` to its first step on text of any size: python -m benchmarks.starting [MB ...]

For each size a file of so many megabytes in a folder, and one .jsonl of a million short rows, made of drawn words in a
temporary folder. The command is a process of its own (one step of two rows, the `demo` shape); its time and its largest
resident memory are what the system says of it. The first line has 20 kB: what a start takes whatever the text.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.asking import read_values

SIZES_MB = (0.02, 20, 200, 2000)
ROWS = 1_000_000
STEP = "--preset demo --steps 1 --batch-size 2 --micro-batch 2 --eval-kilobytes 4 --precision fp32 --sample-prompts x"


def write_text(path: Path, n_bytes: int) -> None:
    """Write lines of drawn words, an empty one now and then."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    lines = [" ".join(draw.choices(words, k=12)) + ".\n" for _ in range(20_000)]
    written = 0
    with path.open("w") as stream:
        while written < n_bytes:
            written += stream.write("".join(draw.choices(lines, k=draw.randint(1, 40))) + "\n")


def write_rows(path: Path, count: int) -> None:
    """Write short rows, each another."""
    with path.open("w") as stream:
        stream.writelines(json.dumps({"text": f"row {i} is a short text of a few words"}) + "\n" for i in range(count))


def time_start(data: Path, run: Path) -> tuple[float, float]:
    """Return seconds and gigabytes of a training of one step."""
    command = [sys.executable, "-m", "deepseek_v3", "train", *STEP.split(), "--data", str(data), "--run", str(run)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)


def main(sizes_mb: tuple[float, ...] = SIZES_MB, rows: int = ROWS) -> None:
    """Print a line for each size."""
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes_mb:
            data = Path(folder, f"{size:g} MB")
            data.mkdir()
            write_text(data / "text.txt", int(size * 1e6))
            report(data.name, data, folder)
            (data / "text.txt").unlink()
        write_rows(Path(folder, "rows.jsonl"), rows)
        report(f"{rows:,} rows", Path(folder, "rows.jsonl"), folder)


def report(name: str, data: Path, folder: str) -> None:
    """Time a start and print its line."""
    taken, peak = time_start(data, Path(folder, f"run {name}"))
    print(f"{name:>16}: {taken:6.1f} s to the end of the first step, {peak:.2f} GB", flush=True)


if __name__ == "__main__":
    main(tuple(read_values(__doc__, "MB", float)) or SIZES_MB)
