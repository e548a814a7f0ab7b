"""Sorted experts equal the plain loop, forward and backward, whatever the load."""

import pytest
import torch
from torch.nn import functional as F

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.moe import Experts
from deepseek_v3.ops.grouped import run_experts_together, sort_by_expert


def loop_over_experts(x, weight, index, experts):
    """One expert at a time, as slowly and as plainly as possible."""
    y = torch.zeros_like(x)
    for n in range(x.shape[0]):
        for w, e in zip(weight[n], index[n]):
            gate, up = (experts.gate_up_proj[e] @ x[n]).chunk(2)
            y[n] = y[n] + w * (experts.down_proj[e] @ (F.silu(gate) * up))
    return y


@pytest.mark.parametrize("load", ["random", "one expert", "one token"])
def test_sorted_experts_equal_the_plain_loop(load):
    torch.manual_seed(4)
    config = ModelConfig.preset("demo").replace(hidden_size=11, moe_intermediate_size=7, n_routed_experts=5, n_group=1,
                                                topk_group=1, num_experts_per_tok=3)  # fmt: skip
    experts = Experts(config).double()
    for p in experts.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    tokens = 1 if load == "one token" else 13
    x = torch.randn(tokens, 11, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(tokens, 3, dtype=torch.float64, requires_grad=True)
    index = torch.stack([torch.randperm(5)[:3] for _ in range(tokens)])
    if load == "one expert":
        index = torch.tensor([[2, 2, 2]]).expand(tokens, 3)  # not a routing, but the sum still holds; four experts idle
    leaves = [x, weight, *experts.parameters()]
    got = run_experts_together(x, weight, experts.gate_up_proj, experts.down_proj, sort_by_expert(index, 5))
    want = loop_over_experts(x, weight, index, experts)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(want)
    for ours, theirs in zip(torch.autograd.grad(got, leaves, probe), torch.autograd.grad(want, leaves, probe)):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_two_runs_are_bitwise_equal():
    torch.manual_seed(5)
    experts = Experts(ModelConfig.preset("demo"))
    for p in experts.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    x, weight = torch.randn(257, 256), torch.rand(257, 4)
    index = torch.rand(257, 16).topk(4).indices

    def run():
        leaf = x.clone().requires_grad_()
        y = experts(leaf, weight, index)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *experts.parameters()])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))
