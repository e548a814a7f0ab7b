"""Run by torchrun: the routed experts of an FP8 layer in several processes, beside the same layer in each one alone.

fp8_layer.py        prints what is not equal bit by bit, and how many bytes were sent
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.fp8.recipe import DISPATCHED
from deepseek_v3.model.moe import Experts
from deepseek_v3.parallel.expert_parallel import ExpertExchange
from deepseek_v3.parallel.mesh import Mesh, leave

WIDTH, HIDDEN, EXPERTS, PER_TOKEN, TOKENS = 160, 136, 8, 3, 301  # tiles of 128 and of what is left, along every axis
CONFIG = ModelConfig.preset("demo").replace(
    hidden_size=WIDTH, n_routed_experts=EXPERTS, moe_intermediate_size=HIDDEN, num_experts_per_tok=PER_TOKEN
)


def run_layer(experts: Experts, x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor, dy_ND: Tensor) -> dict[str, Tensor]:
    """Forward and backward."""
    x_ND, weight_NA = x_ND.clone().requires_grad_(), weight_NA.clone().requires_grad_()
    y_ND = experts(x_ND, weight_NA, index_NA)
    y_ND.backward(dy_ND)
    found = {"y": y_ND.detach(), "dx": x_ND.grad, "dweight": weight_NA.grad}
    return {**found, "dup": experts.gate_up_proj.grad, "ddown": experts.down_proj.grad}  # type: ignore[dict-item]


def build(first: int, count: int) -> Experts:
    """Some of the layer's experts."""
    draw, experts = torch.Generator().manual_seed(5), Experts(CONFIG)
    for name in ("gate_up_proj", "down_proj"):
        weight = torch.randn(getattr(experts, name).shape, generator=draw) * 0.1
        setattr(experts, name, torch.nn.Parameter(weight[first : first + count].clone()))
    experts.recipe = DISPATCHED
    return experts


mesh = Mesh(1)
torch.manual_seed(9)
x_ND, dy_ND = torch.randn(TOKENS, WIDTH) * 3, torch.randn(TOKENS, WIDTH) * 1e-4
weight_NA = torch.rand(TOKENS, PER_TOKEN)
index_NA = torch.rand(TOKENS, EXPERTS - 1).topk(PER_TOKEN).indices  # nobody chooses the last expert
known = run_layer(build(0, EXPERTS), x_ND, weight_NA, index_NA, dy_ND)
local = EXPERTS // mesh.world
for cuts in ([0, 177, TOKENS], [0, 0, TOKENS]):  # the second time one has no token
    mine = slice(cuts[mesh.rank], cuts[mesh.rank + 1])
    experts = build(mesh.rank * local, local)
    experts.exchange = exchange = ExpertExchange(dist.group.WORLD, EXPERTS)
    found = run_layer(experts, x_ND[mine], weight_NA[mine], index_NA[mine], dy_ND[mine])
    here = slice(mesh.rank * local, (mesh.rank + 1) * local)
    for name, value in found.items():
        if not torch.equal(value, known[name][here if name in ("dup", "ddown") else mine]):
            sys.stdout.write(f"UNEQUAL {name} on {mesh.rank} with {cuts}\n")
    crossing = int((index_NA[mine] // local != mesh.rank).sum())
    arriving = int((index_NA // local == mesh.rank).sum()) - int((index_NA[mine] // local == mesh.rank).sum())
    sys.stdout.write(f"SENT {exchange.sent_bytes} {crossing} {arriving}\n")
sys.stdout.flush()
mesh.close()
leave(0)
