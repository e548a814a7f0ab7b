"""The NumPy training step beside PyTorch's on the same weights: OMP_NUM_THREADS=1 python -m benchmarks.numpy_model

One step is forward, loss with MTP and balance, backward, clip at 1, AdamW and the biases, in float32, on packed windows
of one length. Both sides run the same number of threads, in turns. With one thread the time of the processor is the
time of the work, and a busy machine does not decide: quote that ratio. With several threads read the wall's, on a
machine that is otherwise idle: waiting threads burn processor time too.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.asking import read_values
from deepseek_v3 import ModelConfig, RoutingRecord, load
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.loss import pretraining_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "06_whole_model"))

import chapters  # noqa: F401
from architecture import Config, init_model, trained_weights
from checkpoint import load_checkpoint, save_checkpoint
from small_language_model import AdamW
from train import LAPTOP
from training import Recipe, take_step

RATE = 1e-3


def numpy_step(folder: Path, windows, dtype: type) -> Callable[[], float]:
    """The chapter's step on a checkpoint; returns its main loss."""
    model = load_checkpoint(folder, dtype)
    optimizer = AdamW(trained_weights(model.weights))
    return lambda: take_step(model, optimizer, windows, Recipe(), RATE).main


def torch_step(folder: Path, windows, dtype: torch.dtype) -> Callable[[], float]:
    """The package's step on the same checkpoint, eager; returns its main loss."""
    model, _ = load(folder, dtype=dtype)
    model.train()
    tokens, documents = (torch.tensor(part) for part in windows)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    rows = int((documents[:, 1:] == documents[:, :-1]).sum())
    counter, recipe = LoadCounter(model), Recipe()

    def run() -> float:
        record = RoutingRecord()
        counter.reset()
        hidden = model.hidden_states(tokens[:, :-1], record=record)
        parts = pretraining_loss(
            hidden,
            model.mtp_hidden_states(tokens[:, :-1], hidden, record),
            model.lm_head,
            tokens,
            documents,
            mtp_weight=recipe.mtp_weight,
            step_rows=rows,
            balance_losses=record.balance_losses.values(),
            balance_alpha=recipe.alpha,
        )
        optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        counter.add(record)
        counter.move_biases(recipe.bias_speed)
        return float(parts.main_nats) / parts.main_rows

    return run


def time_in_turns(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of processor and of wall of each, the rounds interleaved, after one round to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time(), time.perf_counter()
            step()
            if i:
                times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return times


def compare(title: str, config: Config, n_windows: int, n_tokens: int, rounds: int) -> float:
    """Time both on one config, print them, and return the ratio of processor times in float32."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (n_windows, n_tokens))
    windows = tokens, np.zeros_like(tokens)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_checkpoint(init_model(rng, config, np.float32), folder)
        steps = {
            "torch float32": torch_step(folder, windows, torch.float32),
            "numpy float32": numpy_step(folder, windows, np.float32),
            "numpy float64": numpy_step(folder, windows, np.float64),
        }
    first = {name: step() for name, step in steps.items()}
    assert max(first.values()) - min(first.values()) < 1e-4, first  # the same step, not another model
    times = time_in_turns(steps, rounds)
    print(f"{title}, {n_windows} x {n_tokens - 1} tokens, main loss of the first step {first['numpy float32']:.5f}")
    for name, pairs in times.items():
        processor, wall = (1e3 * statistics.median(column) for column in zip(*pairs))
        print(f"  {name}   {processor:8.0f} ms of processor, {wall:8.0f} ms of wall")
    both = list(zip(times["numpy float32"], times["torch float32"]))
    processor, wall = (statistics.median(ours[k] / theirs[k] for ours, theirs in both) for k in (0, 1))
    print(
        f"  numpy / torch, float32: {processor:.2f} by processor, {wall:.2f} by wall (medians of {rounds} paired steps)"
    )
    return processor


def main(rounds: int = 7) -> None:
    """Compare on the model of `train.py` and on the package's `demo`."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(f"threads: torch {torch.get_num_threads()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    compare("06_whole_model/train.py", LAPTOP, 16, 130, rounds)
    compare("preset demo", Config.from_dict(ModelConfig.preset("demo").to_dict()), 8, 257, rounds)


if __name__ == "__main__":
    main(*read_values(__doc__, "ROUNDS", int)[:1])
