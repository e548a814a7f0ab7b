"""What `--recompute` saves: python -m benchmarks.recompute

Bytes that one micro-batch keeps from its forward pass for its backward pass, as PyTorch's hooks on saved tensors count
them, each storage once and weights not at all: without recomputation, and with. With it the backward pass makes the
activations of one block at a time again; the largest block is the third figure.
"""

import torch
from torch import Tensor, nn

from benchmarks.asking import read_values
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.packing import Batch
from deepseek_v3.model.block import Block
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.machine import autocast_for
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.recompute import recompute_blocks
from deepseek_v3.training.schedule import Settings

SHAPES = {"demo": (4, 256), "nano": (8, 512)}  # rows and tokens of a micro-batch


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what is kept for the backward pass, but for the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
        self.kept: dict[int, tuple[int, Tensor]] = {}  # the tensors too, so that no address comes twice
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()
        return tensor

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(size for size, _ in self.kept.values())


def kept_bytes(model: DeepseekV3, rows: int, length: int, precision: str = "fp32") -> tuple[int, int]:
    """Bytes kept by the forward pass of a micro-batch, and by the block that keeps the most."""
    tokens = torch.randint(0, model.config.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch, settings = Batch(tokens, torch.zeros_like(tokens)), Settings(1e-3, rows, 0.3, 1e-3, rows * length)
    per_block, before = [], []
    counter = KeptBytes(model)
    with counter, autocast_for(precision)():
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.register_forward_pre_hook(lambda *_: before.append(counter.total))
            block.register_forward_hook(lambda *_: per_block.append(counter.total - before[-1]))
        parts = Pretraining(1e-4)(model, batch, RoutingRecord(), settings)
        del parts
    return counter.total, max(per_block)


def main() -> None:
    """Print a line a preset and format."""
    print("\nkept for the backward pass of one micro-batch, MB")
    for preset, (rows, length) in SHAPES.items():
        for precision in ("fp32", "bf16"):
            torch.manual_seed(0)
            model = DeepseekV3(ModelConfig.preset(preset))
            whole, block = kept_bytes(model, rows, length, precision)
            model = DeepseekV3(ModelConfig.preset(preset))
            recompute_blocks(model)
            inputs, _ = kept_bytes(model, rows, length, precision)
            print(
                f"  {preset}, {rows} x {length} tokens, {precision}: {whole / 1e6:.1f}, with --recompute "
                f"{inputs / 1e6:.1f} and at most {block / 1e6:.1f} of one block at a time: "
                f"{(inputs + block) / whole:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    read_values(__doc__)
    main()
