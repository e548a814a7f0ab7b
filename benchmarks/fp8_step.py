"""What an emulated FP8 training step costs beside one in BF16: python -m benchmarks.fp8_step

Forward and backward pass of one micro-batch and the update, in turns, the best of some rounds, in seconds of processor
time of one thread: what other programs take does not count.
"""

import time
from collections.abc import Sequence

import torch

from benchmarks.asking import one_of, read_values
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import Batch
from deepseek_v3.model.fp8_products import use_fp8_products
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.optimizer import build_optimizer
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.schedule import Settings

SHAPES = {"demo": (4, 256), "nano": (8, 512)}  # rows and tokens of a micro-batch


class Contender:
    """A model of its own, and its optimizer."""

    def __init__(self, preset: str, precision: str) -> None:
        torch.manual_seed(0)
        self.model = DeepseekV3(ModelConfig.preset(preset))
        if precision == "fp8":
            use_fp8_products(self.model)
        self.optimizer = build_optimizer(self.model, TrainOptions(), precision)
        self.autocast = autocast_for(precision)
        rows, length = SHAPES[preset]
        tokens = torch.randint(0, self.model.config.vocab_size, (rows, length + 1))
        self.batch = Batch(tokens, torch.zeros_like(tokens))
        self.settings = Settings(1e-3, rows, 0.3, 1e-3, rows * length)

    def step(self) -> float:
        """Do one step; return the seconds of processor time."""
        started = time.process_time()
        with self.autocast():
            parts = Pretraining(1e-4)(self.model, self.batch, RoutingRecord(), self.settings)
        parts.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started


def main(presets: Sequence[str] = (), rounds: int = 5) -> None:
    """Print a line a preset."""
    torch.set_num_threads(1)
    for preset in presets or SHAPES:
        contenders = {precision: Contender(preset, precision) for precision in ("bf16", "fp8")}
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(rounds):
            for precision, contender in contenders.items():
                best[precision] = min(best[precision], contender.step())
        rows, length = SHAPES[preset]
        print(
            f"{preset}, {rows} x {length} tokens: bf16 {best['bf16']:.3f} s, fp8 {best['fp8']:.3f} s: "
            f"{best['fp8'] / best['bf16']:.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    main(read_values(__doc__, "PRESET", one_of(list(SHAPES))))
