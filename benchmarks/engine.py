"""What the engine costs beside the model: python -m benchmarks.engine

The model is so narrow that there is next to nothing to compute, so what remains is the call. A token of `generate`, and
one of a batch, against the decoding step alone, which reads the same rows of the same length: the difference is the
engine's own work (schedule, tables, choice of the token, events). The fastest step counts,
since whatever else the machine does can only add.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.asking import read_values
from benchmarks.decode import NARROW
from benchmarks.peers import nano
from deepseek_v3.engine.decode_step import DecodeStep, Rows
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.model.cache import LatentCache

TOKENS, WINDOW = 2000, 1


def fastest_window(step: Callable[[], object]) -> float:
    """Microseconds of one step: the fastest window of many."""
    best = float("inf")
    for _ in range(TOKENS // WINDOW - 1):
        start = time.perf_counter()
        for _ in range(WINDOW):
            step()
        best = min(best, time.perf_counter() - start)
    return best / WINDOW * 1e6


def measure(rows: int) -> tuple[float, float]:
    """Microseconds of a step of the engine, and of the decoding step alone, for so many rows."""
    model = nano(**NARROW).eval()
    engine = Engine(model, EngineOptions(n_blocks=rows, block_size=TOKENS + 2, max_rows=rows))
    for row in range(rows):
        engine.admit(Request([3 + row, 5], max_new_tokens=TOKENS + 1))
    engine.step()
    step, cache = DecodeStep(model), LatentCache.dense(model.config, rows, TOKENS + 2, dtype=torch.float32)
    tokens = Rows([3] * rows, [1] * rows)
    step.read(tokens, cache)
    return fastest_window(engine.step), fastest_window(lambda: step.read(tokens, cache))


def main() -> None:
    """Print the engine's share per token at batch 1 and 8."""
    print("the engine's own work, on a model with next to nothing in it")
    for rows in (1, 8):
        whole, alone = measure(rows)
        print(
            f"  {rows} rows: a step {whole:5.0f} us, the decoding step alone {alone:5.0f} us: "
            f"{(whole - alone) / rows:5.1f} us per token"
        )


if __name__ == "__main__":
    read_values(__doc__)
    main()
