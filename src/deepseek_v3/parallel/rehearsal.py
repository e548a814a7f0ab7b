"""What each rank of a pipeline would hold, counted by cutting the real model without a number in it.

The modules are on the meta device, the process group only pretends (PyTorch's "fake" one), and the cut is the one that
trains (`shard.py`). So thousands of processes are rehearsed in seconds, in one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.block import Block
from deepseek_v3.model.linear import Embedding
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.shard import Ways, cut_model, make_ways
from deepseek_v3.parallel.stages import Stage


class Held(NamedTuple):
    """Weights that one process holds, in numbers.

    Attributes:
        part: of its own for good.
        whole: in all layers of its stages, once they are gathered; of experts only those that live here.
        largest: in the largest of these layers.
    """

    part: int
    whole: int
    largest: int


def rehearse(config: ModelConfig, ranks: Sequence[Sequence[Stage]], dp: int, ep: int) -> list[Held]:
    """Cut each rank's stages over `dp` processes, `ep` of which share the experts; count what the first of them holds.

    The first one's parts are the largest, where they are not equal.

    Raises:
        MeshError: the experts cannot be shared equally.
    """
    with torch.device("meta"):
        model = DeepseekV3(config)
    with _pretend(len(ranks) * dp):
        ways = make_ways("cpu", len(ranks) * dp, pp=len(ranks), ep=ep)
        return [_cut_and_count(take_stages(model, stages), ways) for stages in ranks]


@contextmanager
def _pretend(world: int) -> Iterator[None]:
    """Be the first of so many processes, of which there is one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def take_stages(model: DeepseekV3, stages: Sequence[Stage]) -> nn.Module:
    """Put the modules of some stages together; MTP modules without the first stage get an embedding of their own."""
    held = nn.Module()
    held.layers = nn.ModuleDict({str(i): model.layers[i] for stage in stages for i in stage.layers})
    if any(stage.first for stage in stages):
        held.embed_tokens = model.embed_tokens
    if any(stage.last for stage in stages):
        held.norm, held.lm_head, held.mtp = model.norm, model.lm_head, model.mtp
        if len(model.mtp) and not hasattr(held, "embed_tokens"):
            with torch.device("meta"):
                held.embed_tokens = Embedding(model.config.vocab_size, model.config.hidden_size)
    return held


def _cut_and_count(held: nn.Module, ways: Ways) -> Held:
    cut_model(held, ways)
    blocks = [sum(map(_gathered, m.parameters())) for m in held.modules() if isinstance(m, Block)]
    parameters = list(held.parameters())
    part = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return Held(part, sum(map(_gathered, parameters)), max(blocks, default=0))


def _gathered(parameter: nn.Parameter) -> int:
    """Numbers of a weight once it is gathered: an expert's are gathered over `rest` alone."""
    if isinstance(parameter, DTensor) and "ep" in (parameter.device_mesh.mesh_dim_names or ()):
        return parameter.numel() // parameter.device_mesh["ep"].size()
    return parameter.numel()
