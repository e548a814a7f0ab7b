"""Two processes of one thread against one process of two: python -m benchmarks.processes [ROUNDS]

A training step of the `demo` shape on 8 rows of 256 tokens: one process with two threads; two processes of one thread,
with FSDP2 alone (`--ep 1`) and with the experts shared (`--ep 2`); and two processes of one thread that take half of
the rows each and never speak. What the last are faster by is what speaking costs: exchanges, and waiting for each
other. The sides take turns, forth and back, each in processes of its own; a ratio is the median over the rounds.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS, LENGTH, MICRO, WARM, STEPS = 8, 256, 4, 1, 3
SIDES = {"one process, two threads": (1, 2, 0), "two processes, --ep 1": (2, 1, 1), "two processes, --ep 2": (2, 1, 2),
         "two that never speak": (2, 1, 0)}  # fmt: skip


def work(threads: int, ep: int, rows: int) -> float:
    """Return the seconds of a step in this process; `ep` 0 speaks to nobody."""
    import torch

    from deepseek_v3.config import ModelConfig
    from deepseek_v3.data.packing import Batch
    from deepseek_v3.model.transformer import DeepseekV3
    from deepseek_v3.parallel.layout import Solo
    from deepseek_v3.training.balance import LoadCounter
    from deepseek_v3.training.machine import autocast_for
    from deepseek_v3.training.objective import Pretraining
    from deepseek_v3.training.optimizer import build_optimizer
    from deepseek_v3.training.options import TrainOptions
    from deepseek_v3.training.schedule import Settings
    from deepseek_v3.training.step import Update

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if ep:
        from deepseek_v3.parallel.mesh import Mesh

        layout = Mesh(MICRO, ep=ep)
    else:
        layout = Solo(MICRO)
    config = ModelConfig.preset("demo")
    model = layout.place(DeepseekV3(config))
    parts = Pretraining(1e-4), layout, LoadCounter(model), None, autocast_for("fp32")
    lengths = torch.ones(config.vocab_size, dtype=torch.int64)
    update = Update(model, build_optimizer(model, TrainOptions()), *parts, lengths, 1.0)
    tokens = torch.randint(0, config.vocab_size, (rows, LENGTH + 1))
    batch, settings = Batch(tokens, torch.zeros_like(tokens)), Settings(1e-3, rows, 0.3, 1e-3)
    for step in range(WARM + STEPS):
        if step == WARM:
            began = time.perf_counter()
        update.run(batch, settings, lambda: False)
    seconds = (time.perf_counter() - began) / STEPS
    layout.close()
    return seconds


def run_side(processes: int, threads: int, ep: int) -> float:
    """Start a side; return the seconds of its step, of the slower process."""
    rows = ROWS if ep or processes == 1 else ROWS // processes
    words = ["-m", "benchmarks.processes", "work", str(threads), str(ep), str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    if ep:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        commands = [[sys.executable, *launcher, "-m", "--", *words[1:]]]
    else:
        commands = [[sys.executable, *words]] * processes
    started = [subprocess.Popen(c, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate()[0] for process in started]
    return max(float(line.split()[1]) for text in said for line in text.splitlines() if line.startswith("STEP"))


def measure(rounds: int) -> dict[str, list[float]]:
    """Time every side, in turns."""
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    for i in range(rounds):
        for name in list(SIDES)[:: -1 if i % 2 else 1]:
            found[name].append(run_side(*SIDES[name]))
    return found


def main() -> None:
    """Print tokens per second, ratios to one process, and what speaking costs."""
    found = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    alone, mute = found["one process, two threads"], found["two that never speak"]
    print(f"a step of {ROWS} x {LENGTH} tokens, preset demo, fp32, {len(alone)} rounds")
    for name, seconds in found.items():
        rate = ROWS * LENGTH / statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(alone, seconds))
        lost = statistics.median(1 - m / s for m, s in zip(mute, seconds))
        talk = f", {lost:.0%} of the time lost to speaking" if name.startswith("two processes") else ""
        print(f"  {name:<26}{rate:9,.0f} tokens/s, {ratio:.2f} times one process{talk}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        sys.stdout.write(f"STEP {work(*map(int, sys.argv[2:]))}\n")
    else:
        main()
