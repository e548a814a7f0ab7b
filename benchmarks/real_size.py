"""One run at real size: the shape of DeepSeek-V2-Lite, 15.7 billion parameters: python -m benchmarks.real_size

Random FP8 weights are written in a stream (16 GB on disk), then inspected with every byte verified, loaded and kept in
FP8, and ten tokens are generated. Each stage is a process of its own: its time, and the most memory that it had.

    python -m benchmarks.real_size --folder DIR       keep the checkpoint there; without, it is removed again
    python -m benchmarks.real_size --preset nano      the same at another size

What a stage maps of the files counts as memory while it is mapped, though the system could take it back.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STAGES = ("write", "inspect", "load and generate")
PIECE = 2**24  # elements
PROMPT, NEW = [0, 11, 222, 3333], 10


def random_pieces(dtype, shape: tuple[int, ...], pool, at: int) -> Iterator:
    """Yield the elements of a tensor: FP8 codes from a pool of them, other weights from the pool's numbers."""
    import torch

    left = torch.Size(shape).numel()
    while left:
        n = min(left, PIECE)
        codes = pool[at % 4096 :][:n]
        yield codes if dtype == torch.float8_e4m3fn else (codes.float() * (0.02 / 100)).to(dtype)
        left, at = left - n, at + 1031


def write_random(folder: Path, preset: str) -> None:
    """Write a checkpoint of random weights, never more than a piece of it in memory."""
    import torch

    from deepseek_v3.config import ModelConfig
    from deepseek_v3.fp8.quantize import cast_e4m3
    from deepseek_v3.weights.folder import atomic_folder
    from deepseek_v3.weights.names import SCALE_SUFFIX, iterate_slots
    from deepseek_v3.weights.save import METADATA, list_specs, released_config
    from deepseek_v3.weights.shards import plan_shards, write_shards

    config = ModelConfig.preset(preset)
    slots = {slot.name: slot for slot in iterate_slots(config)}
    specs = {name: (dtype, shape) for name, dtype, shape in list_specs(list(slots.values()), torch.bfloat16, fp8=True)}
    generator = torch.Generator().manual_seed(0)
    pool = cast_e4m3(torch.randn(PIECE + 4096, generator=generator) * 100)

    def fetch(name: str):
        dtype, shape = specs[name]
        if name.endswith(SCALE_SUFFIX):
            return torch.full(shape, 0.02 / 100)
        if "norm" in name:
            return torch.ones(shape, dtype=dtype)
        if slots[name].fp32:
            return torch.zeros(shape, dtype=dtype)
        return random_pieces(dtype, shape, pool, len(slots[name].memory) * 17)

    plan = plan_shards([(name, *spec) for name, spec in specs.items()])
    with atomic_folder(folder, n_bytes=plan.total_size) as beside:
        released_config(config, torch.bfloat16, fp8=True).to_json(beside / "config.json")
        write_shards(plan, fetch, beside, metadata=METADATA)


def inspect(folder: Path) -> None:
    """Count and check what the folder holds, every byte against its digest."""
    from deepseek_v3.weights.inspect import inspect_checkpoint, print_inspection

    found = inspect_checkpoint(folder, verify=True)
    assert not found.problems, found.problems
    print_inspection(found)


def load_and_generate(folder: Path) -> None:
    """Load with FP8 kept, and let it write."""
    import torch

    import deepseek_v3

    start = time.perf_counter()
    model, _ = deepseek_v3.load(folder, keep_fp8=True)
    print(f"    loaded and verified in {time.perf_counter() - start:.1f} s with {torch.get_num_threads()} threads")
    taken, start = [], time.perf_counter()
    for token in deepseek_v3.generate(model, PROMPT, max_new_tokens=NEW):
        taken.append((int(token), time.perf_counter() - start))
        start = time.perf_counter()
    assert len(taken) == NEW
    seconds = sorted(s for _, s in taken[1:])
    print(f"    tokens {[token for token, _ in taken]}")
    print(f"    the first after {taken[0][1]:.2f} s, then one every {seconds[len(seconds) // 2] * 1e3:.0f} ms (median)")


def run_stage(stage: str, folder: Path, preset: str) -> None:
    """In a process of its own: do one stage, print its time and its peak memory."""
    start = time.perf_counter()
    if stage == "write":
        write_random(folder, preset)
    elif stage == "inspect":
        inspect(folder)
    else:
        load_and_generate(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"  {stage}: {time.perf_counter() - start:.1f} s, at most {peak / 1e9:.2f} GB of memory", flush=True)


def main() -> int:
    """Run the stages one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="v2-lite-16b")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here; an existing one is used as it is")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        run_stage(asked.stage, asked.folder, asked.preset)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch) / asked.preset
        print(f"{asked.preset}, random weights in FP8, {folder}", flush=True)
        for stage in STAGES[1 if (folder / "config.json").exists() else 0 :]:
            command = [sys.executable, "-m", "benchmarks.real_size", "--stage", stage]
            if code := subprocess.call([*command, "--folder", str(folder), "--preset", asked.preset]):
                return code
        n_bytes = sum(path.stat().st_size for path in folder.iterdir())
        print(f"  the folder has {n_bytes / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
