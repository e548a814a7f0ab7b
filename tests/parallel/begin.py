"""Run by torchrun: a model that is drawn part by part, beside the same one that is drawn whole and then cut.

begin.py WAY ...        such as ep=2 or pp=2,ep=2 or fsdp=1; prints what is not equal bit by bit
"""

import sys
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.initialize import draw_in_turn
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Weights
from deepseek_v3.parallel.mesh import Mesh, leave
from deepseek_v3.parallel.pipeline import Pipeline

CONFIG = ModelConfig.preset("demo").replace(
    num_hidden_layers=5, hidden_size=40, vocab_size=331, n_routed_experts=8, moe_intermediate_size=24,
    num_nextn_predict_layers=1, n_group=2, topk_group=1,
)  # fmt: skip


def watch(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Hand weights on; the one before must be gone by then."""
    seen = lambda: None  # noqa: E731
    for pair in weights:
        if seen() is not None:
            sys.stdout.write(f"KEPT beside {pair[0]}\n")
        seen = weakref.ref(pair[1])
        yield pair
        del pair


def begin(mesh: Mesh, whole: bool) -> tuple[dict[str, Tensor], Tensor]:
    """What this process holds of the model, and the state of the generator then."""
    torch.manual_seed(3)
    if whole:
        model, weights = DeepseekV3(CONFIG), ()
    else:
        with torch.device("meta"):
            model = DeepseekV3(CONFIG)
        weights = watch(draw_in_turn(model, CONFIG.initializer_range))
    model = mesh.place(model, weights)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: t.to_local() if isinstance(t, DTensor) else t for n, t in held.items()}, torch.get_rng_state()


for way in sys.argv[1:]:
    ways = {name: int(value) for name, value in (word.split("=") for word in way.split(",")) if name != "fsdp"}
    mesh = (Pipeline if "pp" in ways else Mesh)(1, **ways)
    (known, after), (mine, state) = begin(mesh, True), begin(mesh, False)
    unequal = [name for name, value in known.items() if name not in mine or not torch.equal(mine[name], value)]
    if mine.keys() != known.keys() or unequal or not torch.equal(state, after):
        sys.stdout.write(f"UNEQUAL {way} on {mesh.rank}: {unequal}\n")
    sys.stdout.write(f"HELD {way} {mesh.here} {sum(value.numel() for value in mine.values())}\n")
sys.stdout.flush()
mesh.close()
leave(0)
