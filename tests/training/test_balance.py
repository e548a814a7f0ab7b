"""The sign rule: its direction, whose counts, who moves, and when nothing may move."""

import pytest
import torch

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.training.balance import LoadCounter, find_routers, max_violation


def count_step(model, batches) -> LoadCounter:
    counter = LoadCounter(model)
    for tokens in batches:
        record = RoutingRecord()
        model(tokens, mtp=True, record=record)
        counter.add(record)
    return counter


def test_the_bias_falls_for_overloaded_and_rises_for_underloaded_experts(tiny_model):
    model = tiny_model()
    counter = LoadCounter(model)
    counter.counts = dict.fromkeys(counter.routers, torch.tensor([9, 3, 0, 0, 3, 3]))
    counter.move_biases(0.001)
    for router in find_routers(model).values():
        assert torch.allclose(router.e_score_correction_bias, 0.001 * torch.tensor([-1.0, 0, 1, 1, 0, 0]))


def test_counts_are_those_of_the_whole_step_not_of_its_last_part(tiny_model):
    """Two micro-batches with opposite loads cancel out: over the whole step nothing is uneven."""
    model = tiny_model()
    counter = LoadCounter(model)
    for counts in ([6, 0, 3, 3, 3, 3], [0, 6, 3, 3, 3, 3]):
        record = RoutingRecord()
        record.counts = dict.fromkeys(counter.routers, torch.tensor(counts))
        counter.add(record)
    counter.move_biases(0.001)
    assert all(not router.e_score_correction_bias.any() for router in find_routers(model).values())


def test_every_router_moves_those_of_the_mtp_modules_too(tiny_model):
    model = tiny_model()
    gates = [model.layers[1].mlp.gate, model.mtp[0].block.mlp.gate, model.mtp[1].block.mlp.gate]
    assert find_routers(model) == dict(enumerate(gates, 1))
    counter = count_step(model, [torch.randint(0, 31, (5, 8))])
    counter.move_biases(0.01)
    assert all(router.e_score_correction_bias.any() for router in find_routers(model).values())


def test_each_router_moves_by_its_own_counts(tiny_model):
    model = tiny_model()
    counter = LoadCounter(model)
    counter.counts = {layer: torch.eye(6, dtype=torch.int64)[layer] for layer in (3, 1, 2)}
    counter.move_biases(1.0)
    assert [int(router.e_score_correction_bias.argmin()) for router in find_routers(model).values()] == [1, 2, 3]


def test_the_bias_is_no_parameter_and_evaluation_leaves_it_alone(tiny_model):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert not any("bias" in name for name, _ in model.named_parameters())
    model.eval()
    model(torch.randint(0, 31, (3, 8)), mtp=True, record=RoutingRecord())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_speed_of_zero_moves_nothing(tiny_model):
    model = tiny_model()
    counter = count_step(model, [torch.randint(0, 31, (5, 8))])
    counter.move_biases(0.0)
    assert all(not router.e_score_correction_bias.any() for router in find_routers(model).values())


def test_the_rule_evens_the_load_out(tiny_model):
    model = tiny_model()
    batch = [torch.randint(0, 31, (31, 8))]
    with torch.no_grad():
        for router in find_routers(model).values():
            router.weight[0] += 0.5 * router.weight.abs().max()  # a favourite expert
        start = max_violation(count_step(model, batch).counts.values())
        for _ in range(80):
            count_step(model, batch).move_biases(0.01)
        end = max_violation(count_step(model, batch).counts.values())
    assert end < 0.5 * start


def test_max_violation_is_zero_when_even_and_one_at_twice_the_share():
    assert max_violation([torch.tensor([5, 5, 5])]) == 0
    assert max_violation([torch.tensor([10, 5, 0]), torch.tensor([5, 5, 5])]) == pytest.approx(0.5)
    assert max_violation([]) == 0


def test_a_record_that_lacks_a_layer_is_refused(tiny_model):
    model = tiny_model()
    record = RoutingRecord()
    model(torch.randint(0, 31, (2, 8)), record=record)
    with pytest.raises(ValueError, match=r"lacks layers \[2, 3\]"):
        LoadCounter(model).add(record)
