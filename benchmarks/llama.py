"""The engine against llama.cpp: python -m benchmarks.llama

`nano` with random weights in FP32, BF16 and 8 bits, exported to GGUF; greedy, behind prompts of 128 tokens, at batch 1,
8, 32. Each is timed by its own steps, a process and an engine in turns; a figure is the median of all steps of the
rounds. 8 bits are on either side what it has: here `--dtype fp8` (E4M3, a scale for 128 x 128, embedding and routers
BF16), there Q8_0 as llama.cpp itself quantizes (integers, a scale for 32, the embedding too, routers F32).

llama.cpp is the one that node-llama-cpp brings as libraries, with the kernels that it picks for this processor and its
cache in FP16; flash attention on or off, whichever is faster. `make test-interop` builds the two programs
(tests/interop/llama_rate.cpp, llama_eight_bits.cpp).
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.asking import read_values
from benchmarks.peers import nano
from benchmarks.streaming import save_nano
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.gguf import export_gguf
from deepseek_v3.weights.load import hold_in_fp8

PROMPT, NEW, BATCHES, ROUNDS = 128, 64, (1, 8, 32), 3
INTEROP = Path(__file__).resolve().parent.parent / "tests" / "interop"
LIBRARIES = INTEROP / "node_modules" / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64"
PROGRAM = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepseek-v3" / "llama" / "llama_rate"
QUANTIZER = PROGRAM.with_name("llama_eight_bits")


def their_steps(path: Path, rows: int, new: int, *, flash: bool) -> list[float]:
    """Seconds of every step of llama.cpp, which reads its prompts anew."""
    numbers = [rows, PROMPT, new, torch.get_num_threads(), int(flash)]
    words = [str(PROGRAM), str(path), *map(str, numbers), str(LIBRARIES)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, timeout=600, check=True).stdout)


def our_steps(model: DeepseekV3, rows: int, new: int) -> list[float]:
    """The same of the engine."""
    engine = Engine(model, EngineOptions(n_blocks=rows, block_size=PROMPT + new, max_rows=rows))
    tokens = torch.randint(0, model.config.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    sequences = [engine.admit(Request(prompt, max_new_tokens=new)) for prompt in tokens.tolist()]
    while not all(sequence.new for sequence in sequences):
        engine.step()
    seconds: list[float] = []
    while len(engine.sequences) == rows:
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def in_every_format(folder: Path) -> Iterator[tuple[str, DeepseekV3, Path]]:
    """Yield a format's name, our model in it (the same one, changed) and llama.cpp's file, in `folder`."""
    model = nano().eval()
    save_nano(folder / "ours", model)
    paths = {kind: folder / f"{kind}.gguf" for kind in ("f32", "bf16", "q8_0")}
    for kind in ("f32", "bf16"):
        export_gguf(folder / "ours", paths[kind], number_type=kind)
    subprocess.run([str(QUANTIZER), str(paths["f32"]), str(paths["q8_0"]), str(LIBRARIES)], timeout=600, check=True)
    yield "f32", model, paths["f32"]
    yield "bf16", model.to(torch.bfloat16), paths["bf16"]
    hold_in_fp8(model)
    yield "8 bits", model, paths["q8_0"]


def print_against_llama(rounds: int = ROUNDS, batches: tuple[int, ...] = BATCHES, new: int = NEW) -> None:
    """Print tokens a second of both and their ratio, or that llama.cpp is not there."""
    if not (PROGRAM.exists() and QUANTIZER.exists() and LIBRARIES.exists()):
        print("  llama.cpp: not built here (make test-interop)")
        return
    with tempfile.TemporaryDirectory() as name:
        for kind, model, path in in_every_format(Path(name)):
            for rows in batches:
                ours: list[float] = []
                theirs: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(rounds):
                    ours += our_steps(model, rows, new)
                    for flash, seconds in theirs.items():
                        seconds += their_steps(path, rows, new, flash=flash)
                own, flash = statistics.median(ours), min(theirs, key=lambda way: statistics.median(theirs[way]))
                other = statistics.median(theirs[flash])
                print(
                    f"  {kind}, batch {rows:2}: engine {rows / own:7.0f} tokens/s, llama.cpp {rows / other:7.0f} "
                    f"(flash attention {'on' if flash else 'off'}): {other / own:.2f} x"
                )


def main() -> None:
    """Print the rows."""
    print(f"\nagainst llama.cpp, {torch.get_num_threads()} threads")
    print_against_llama()


if __name__ == "__main__":
    read_values(__doc__)
    main()
