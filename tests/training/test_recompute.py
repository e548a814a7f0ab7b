"""Recomputation: the same step bit by bit, each block read exactly once more, and less kept in between."""

import torch

from deepseek_v3.data.packing import Batch
from deepseek_v3.model.block import Block
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.training.balance import LoadCounter
from deepseek_v3.training.objective import Pretraining
from deepseek_v3.training.recompute import recompute_blocks
from deepseek_v3.training.schedule import Settings

SETTINGS = Settings(lr=0.0, rows=5, mtp_weight=0.3, bias_speed=0.0, step_rows=40)


def run_step(model, batch: Batch):
    """Loss, counts, gradients, how often each block was read, and the bytes kept for the backward pass."""
    reads, kept, record, counter = [0] * 99, [], RoutingRecord(), LoadCounter(model)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for i, block in enumerate(blocks):
        block.input_layernorm.register_forward_pre_hook(lambda *_, i=i: reads.__setitem__(i, reads[i] + 1))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        parts = Pretraining(1e-2)(model, batch, record, SETTINGS)
    parts.total.backward()
    counter.add(record)
    grads = {name: p.grad for name, p in model.named_parameters()}
    return parts, counter.counts, grads, reads[: len(blocks)], sum(kept)


def test_a_step_with_recomputation_is_the_step_without_and_reads_each_block_once_more(tiny_model, form):
    tokens = torch.randint(0, 31, (5, 41), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, torch.zeros_like(tokens))
    parts, counts, grads, reads, kept = run_step(tiny_model(), batch)
    model = tiny_model()
    recompute_blocks(model)
    recompute_blocks(model)  # asked twice, it is still once
    again, counts_again, grads_again, reads_again, kept_again = run_step(model, batch)
    assert torch.equal(parts.total, again.total)
    assert counts.keys() == counts_again.keys()
    assert all(torch.equal(counts[layer], counts_again[layer]) for layer in counts)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    assert reads == [1] * len(reads)
    assert reads_again == [2] * len(reads)
    assert kept_again < 0.5 * kept
