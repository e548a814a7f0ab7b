"""Places, dropped tokens, and the two ends of the scale."""

import numpy as np
import pytest
from classic_moe import (
    ClassicMoE,
    assign_places,
    classic_moe_backward,
    classic_moe_forward,
    dispatch_combine_backward,
    dispatch_combine_forward,
    dropped_share,
    expert_choice_backward,
    expert_choice_forward,
    expert_places,
    route_by_hash,
    route_uniformly,
)
from expert_routing import count_load, softmax_gate_forward

FIELDS = ("weight", "up_proj", "down_proj")


def compute_expert(x, weights, e):
    return np.maximum(x @ weights.up_proj[e].T, 0) @ weights.down_proj[e].T


@pytest.mark.parametrize(
    ("n_tokens", "n_experts", "n_activated", "factor"),
    [(11, 5, 2, 1.0), (11, 5, 2, 9.0), (1, 3, 1, 1.0), (7, 1, 1, 1.0)],
)
def test_the_gradient_of_the_layer_is_the_central_difference(
    n_tokens, n_experts, n_activated, factor, rng, check_gradients
):
    x, pull = rng.normal(size=(n_tokens, 3)), rng.normal(size=(n_tokens, 3))
    weights = ClassicMoE.init(rng, n_experts, 3, 2)
    _, cache = classic_moe_forward(x, weights, n_activated, factor)
    dx, grads = classic_moe_backward(pull, cache)
    check_gradients(
        lambda: float((classic_moe_forward(x, weights, n_activated, factor)[0] * pull).sum()),
        {"x": x, **{f: getattr(weights, f) for f in FIELDS}},
        {"x": dx, **{f: getattr(grads, f) for f in FIELDS}},
    )


def test_the_gradient_of_expert_choice_is_the_central_difference(rng, check_gradients):
    x, pull, weights = rng.normal(size=(11, 3)), rng.normal(size=(11, 3)), ClassicMoE.init(rng, 5, 3, 2)
    dx, grads = expert_choice_backward(pull, expert_choice_forward(x, weights, 4)[1])
    check_gradients(
        lambda: float((expert_choice_forward(x, weights, 4)[0] * pull).sum()),
        {"x": x, **{f: getattr(weights, f) for f in FIELDS}},
        {"x": dx, **{f: getattr(grads, f) for f in FIELDS}},
    )


def test_with_room_for_all_the_layer_is_the_sum_over_chosen_experts(rng):
    x, weights = rng.normal(size=(11, 3)), ClassicMoE.init(rng, 5, 3, 2)
    y, _ = classic_moe_forward(x, weights, 2, capacity_factor=5.0)
    routing, _ = softmax_gate_forward(x, weights.weight, 2)
    want = np.zeros_like(x)
    for n in range(11):
        for e, gate in zip(routing.index_NA[n], routing.gate_NA[n]):
            want[n] += gate * compute_expert(x[n], weights, e)
    np.testing.assert_allclose(y, want, rtol=1e-12)


def test_the_places_are_the_average_load_times_the_factor():
    assert expert_places(4, 3, 2, 1.0) == 3
    assert expert_places(1000, 10, 1, 1.25) == 125
    assert expert_places(1, 64, 1, 1.0) == 1


def test_first_choices_are_seated_before_second_choices():
    index = np.array([[0, 1], [0, 2], [0, 1], [1, 0]])
    assert assign_places(index, 3, 3).tolist() == [[0, 1], [1, 0], [2, 2], [0, -1]]
    # with one place each, the first choice of the last token beats the second choice of the first
    assert assign_places(np.array([[0, 1], [2, 0], [1, 2]]), 3, 1).tolist() == [[0, -1], [0, -1], [0, -1]]


def test_no_two_tokens_share_a_place(rng):
    index = rng.integers(0, 5, size=(23, 1))
    place = assign_places(index, 5, 4)
    seated = [(e, p) for e, p in zip(index.ravel(), place.ravel()) if p >= 0]
    assert len(seated) == len(set(seated))
    assert max(p for _, p in seated) < 4


def test_a_dropped_token_gets_a_row_of_zeros(rng):
    x, weights = rng.normal(size=(5, 3)), ClassicMoE.init(rng, 3, 3, 2)
    index, gate = np.zeros((5, 1), dtype=int), np.ones((5, 1))
    y, _ = dispatch_combine_forward(x, index, gate, weights, places=2)
    np.testing.assert_array_equal(y[2:], np.zeros((3, 3)))
    np.testing.assert_allclose(y[:2], compute_expert(x[:2], weights, 0), rtol=1e-12)


def test_a_dropped_token_sends_no_gradient(rng):
    x, weights = rng.normal(size=(5, 3)), ClassicMoE.init(rng, 3, 3, 2)
    _, cache = dispatch_combine_forward(x, np.zeros((5, 1), dtype=int), np.ones((5, 1)), weights, places=2)
    dx, dgate, _, _ = dispatch_combine_backward(rng.normal(size=(5, 3)), cache)
    assert not dx[2:].any()
    assert not dgate[2:].any()


def test_the_load_counts_choices_and_the_dropped_share_counts_those_without_a_place():
    index = np.array([[0, 1], [0, 2], [0, 1], [1, 0]])
    assert count_load(index, 3).tolist() == [4, 3, 1]
    assert dropped_share(index, 3, 3) == 1 / 8


def test_expert_choice_fills_every_expert_to_the_last_place(rng):
    x, weights = rng.normal(size=(11, 3)), ClassicMoE.init(rng, 5, 3, 2)
    _, cache = expert_choice_forward(x, weights, 4)
    assert cache[2].shape == (5, 4)
    assert all(len(set(row)) == 4 for row in cache[2].tolist())


def test_expert_choice_lets_the_future_change_the_past_and_token_choice_does_not(rng):
    weights = ClassicMoE.init(rng, 5, 3, 2)
    x = rng.normal(size=(11, 3))
    changed = x.copy()
    changed[7:] = rng.normal(size=(4, 3)) * 3
    before, after = (expert_choice_forward(v, weights, 3)[0][:7] for v in (x, changed))
    assert np.abs(before - after).max() > 1e-3
    before, after = (classic_moe_forward(v, weights, 2, capacity_factor=5.0)[0][:7] for v in (x, changed))
    np.testing.assert_allclose(before, after, rtol=1e-12)


def test_hashing_sends_the_same_token_to_the_same_distinct_experts():
    index = route_by_hash(np.array([3, 8, 3, 3]), 7, 3)
    assert (index[[2, 3]] == index[0]).all()
    assert all(len(set(row)) == 3 for row in index.tolist())
    load = count_load(route_by_hash(np.arange(7000), 7, 1), 7)
    assert load.min() > 0.8 * 1000


def test_dealing_out_like_cards_balances_to_one_token():
    load = count_load(route_uniformly(11, 5, 2), 5)
    assert load.max() - load.min() <= 1
    assert load.sum() == 22
