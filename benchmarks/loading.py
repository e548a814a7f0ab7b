"""Loading a checkpoint against reading its bytes: python -m benchmarks.loading

The checkpoint has 1.5 GB in BF16 and 0.8 GB in FP8, in shards of 300 MB. Loading is `load_model`, with the SHA-256
manifest verified and without; from FP8 it is timed twice, kept in FP8 (`keep_fp8=True`, as `deepseek-v3 generate` does)
and decoded to BF16, which is twice as long in memory. Reading brings the bytes of every file into fresh memory:

    read         Path.read_bytes of one file after the other: what a program does that just reads files
    on all cores 4 MB at a time, into new arrays, with as many threads as loading has
    read hard    the same with all that loading itself does for speed: mapped files that come in ahead, pages of 2 MB

Warm: the files are in the page cache. Cold: they are flushed to disk and dropped from it (posix_fadvise DONTNEED)
before every timing. The contenders take turns; a ratio is the median over the rounds of time / time of reading.
Processor time is that of all threads together.

Memory of a virtual machine that its host took back is slow to touch; so before every timing as much memory as a model
and its files take is touched and freed. Even so some loads take half as long again as others, and in some runs most do.
"""

import gc
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.asking import read_values
from benchmarks.machine import seconds
from deepseek_v3.config import ModelConfig
from deepseek_v3.weights.digests import Piece, cut_file
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.load import build_empty, load_model
from deepseek_v3.weights.memory_map import ReadAhead, ask_for_huge_pages, map_bytes
from deepseek_v3.weights.save import save_model

SIZES = {
    "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 4096, "moe_intermediate_size": 1024,
    "num_hidden_layers": 7, "num_attention_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 32, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
}  # fmt: skip
SHARD_BYTES = 300 * 10**6
READERS = ("read", "on all cores", "read hard")


def write_checkpoint(folder: Path, *, fp8: bool) -> None:
    """Save a model of random weights."""
    torch.manual_seed(0)
    model = build_empty(ModelConfig.from_dict(SIZES), torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.04, 0.04)
    save_model(model, folder, fp8=fp8, shard_bytes=SHARD_BYTES)


def read_files(folder: Path) -> list[Tensor]:
    """Read every file into memory of its own, on all threads, some MB at a time."""
    paths = sorted(folder.iterdir())
    contents = [torch.empty(path.stat().st_size, dtype=torch.uint8) for path in paths]
    pieces = [(piece, content) for path, content in zip(paths, contents) for piece in cut_file(path, len(content))]
    run_jobs([partial(read_into, piece, content[piece.start : piece.stop]) for piece, content in pieces])
    return contents


def read_into(piece: Piece, place: Tensor) -> None:
    """Fill `place` with the bytes of a piece."""
    buffer, done = memoryview(place.numpy()), 0
    with piece.path.open("rb", buffering=0) as stream:
        while done < len(buffer):
            done += os.preadv(stream.fileno(), [buffer[done:]], piece.start + done)


def copy_files(folder: Path) -> list[Tensor]:
    """The same from mappings that come in ahead, into huge pages."""
    mapped = {path: map_bytes(path, 0, path.stat().st_size) for path in sorted(folder.iterdir())}
    contents = [torch.empty_like(content) for content in mapped.values()]
    for content in contents:
        ask_for_huge_pages(content)

    def copy(piece: Piece, content: Tensor) -> None:
        ahead.reach(piece.path, piece.stop)
        content[piece.start : piece.stop].copy_(mapped[piece.path][piece.start : piece.stop])

    pieces = [(piece, content) for path, content in zip(mapped, contents) for piece in cut_file(path, len(content))]
    with ReadAhead(mapped) as ahead:
        run_jobs([partial(copy, *job) for job in pieces])
    return contents


def forget_files(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_memory(n_bytes: int = 3200 * 10**6) -> None:
    """Use some memory and free it at once."""
    block = torch.empty(n_bytes, dtype=torch.uint8)
    ask_for_huge_pages(block)
    block.fill_(1)


def contenders(folder: Path, *, fp8: bool) -> dict[str, Callable[[], object]]:
    """Three ways to read, and loading with and without verification."""
    ways: dict[str, Callable[[], object]] = {
        "read": lambda: [path.read_bytes() for path in sorted(folder.iterdir())],
        "on all cores": lambda: read_files(folder),
        "read hard": lambda: copy_files(folder),
    }
    for form, kept in (("kept", True), ("to BF16", False)) if fp8 else (("load", False),):
        ways[f"{form}, verified"] = partial(load_model, folder, keep_fp8=kept)
        ways[f"{form}, unverified"] = partial(load_model, folder, keep_fp8=kept, skip_verify=True)
    return ways


def measure(folder: Path, *, fp8: bool, cold: bool, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Time the contenders in turn: seconds by the clock, and of the processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders(folder, fp8=fp8)}
    for i in range(rounds + 1):
        for name, run in contenders(folder, fp8=fp8).items():
            gc.collect()
            if cold:
                forget_files(folder)
            touch_memory()
            busy = time.process_time()
            took = seconds(run)
            if i:  # the first round warms up
                times[name].append((took, time.process_time() - busy))
    return times


def print_table(name: str, n_bytes: int, times: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians, rates, and ratios to the ways of reading."""
    print(f"  {name}, {n_bytes / 1e9:.2f} GB")
    for way, taken in times.items():
        clock, busy = (statistics.median(column) for column in zip(*taken))
        line = f"    {way:<19} {clock:5.2f} s {n_bytes / clock / 1e9:5.2f} GB/s   processor {busy:5.2f} s"
        for read in READERS:
            line += f"   x {read} {statistics.median(a[0] / b[0] for a, b in zip(taken, times[read])):4.2f}"
        print(line)


def main(rounds: int = 9) -> None:
    """Write the checkpoints, and print a table for each format and state of the page cache."""
    logging.getLogger("deepseek_v3").setLevel(logging.ERROR)  # that a load is not verified, as asked
    print(f"\nloading a checkpoint against reading its bytes, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as scratch:
        for name, fp8 in (("BF16", False), ("FP8", True)):
            folder = Path(scratch) / name
            write_checkpoint(folder, fp8=fp8)
            n_bytes = sum(path.stat().st_size for path in folder.iterdir())
            for cold in (False, True):
                times = measure(folder, fp8=fp8, cold=cold, rounds=rounds)
                print_table(f"{name}, {'cold' if cold else 'warm'}", n_bytes, times)


if __name__ == "__main__":
    read_values(__doc__)
    main()
