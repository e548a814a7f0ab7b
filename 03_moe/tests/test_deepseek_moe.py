"""The whole layer: golden gate, groups, sorted dispatch against the naive one, gradients, dtype."""

from dataclasses import replace

import numpy as np
import pytest
from deepseek_moe import (
    DeepseekMoE,
    RouterConfig,
    deepseek_moe_backward,
    deepseek_moe_forward,
    keep_best_groups,
    route_tokens_backward,
    route_tokens_forward,
    routed_experts_forward,
    sort_by_expert,
    swiglu_slice_forward,
)
from expert_routing import Routing, scatter_to_experts, sigmoid_gate_forward
from fine_grained_experts import SwiGLUExperts, every_expert_forward
from load_balancing import sequence_balance_backward, sequence_balance_forward
from loss_free_balancing import update_bias

SCORE = np.array([[0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15]])
BIAS = np.array([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3])
GOLDEN = RouterConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2)


def build_layer(rng, config, width, hidden, n_shared=1):
    weights = DeepseekMoE.init(rng, config, width, hidden, n_shared)
    weights.gate.e_score_correction_bias[:] = rng.normal(size=config.n_routed_experts) * 0.1
    return weights


def test_the_golden_gate():
    routing, _ = route_tokens_forward(SCORE, BIAS, GOLDEN)  # V3 Eq. (13), V3 Eq. (14), V3 Eq. (16)
    assert routing.index_NA.tolist() == [[6, 7]]
    np.testing.assert_allclose(routing.gate_NA, [[1.5625, 0.9375]], rtol=1e-12)


def test_masked_groups_lie_below_every_negative_score():
    masked = keep_best_groups(SCORE + BIAS, 4, 2)
    assert np.isneginf(masked[0, :4]).all()
    np.testing.assert_array_equal(masked[0, 4:], (SCORE + BIAS)[0, 4:])


def test_a_group_is_worth_its_two_best_and_not_its_best_alone():
    score = np.array([[0.9, 0.1, 0.1, 0.6, 0.55, 0.1]])  # group 0 has the best expert, group 1 the best pair
    assert np.isneginf(keep_best_groups(score, 2, 1)[0, :3]).all()


def test_the_bias_chooses_but_does_not_count(rng):
    config = RouterConfig(7, 3, 1, 1)
    score = rng.uniform(0.1, 0.9, size=(11, 7))
    plain, _ = route_tokens_forward(score, np.zeros(7), config)
    nudged, _ = route_tokens_forward(score, rng.normal(size=7) * 1e-6, config)
    assert (plain.index_NA == nudged.index_NA).all()
    np.testing.assert_array_equal(plain.gate_NA, nudged.gate_NA)


def test_gates_sum_to_the_scaling_factor_whatever_it_is(rng):
    score = rng.uniform(0.01, 0.99, size=(11, 8))
    for scale in (1.0, 2.5, 16.0):
        routing, _ = route_tokens_forward(score, BIAS, replace(GOLDEN, routed_scaling_factor=scale))
        np.testing.assert_allclose(routing.gate_NA.sum(axis=1), scale)


def test_without_bias_groups_and_scale_the_gate_is_the_plain_sigmoid_gate(rng):
    x, weight = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    config = RouterConfig(7, 3, 1, 1, routed_scaling_factor=1.0)
    plain, _ = sigmoid_gate_forward(x, weight, 3)
    ours, _ = route_tokens_forward(1 / (1 + np.exp(-(x @ weight.T))), np.zeros(7), config)
    assert (plain.index_NA == ours.index_NA).all()
    np.testing.assert_allclose(ours.gate_NA, plain.gate_NA)


def test_chosen_experts_lie_in_few_groups_and_are_distinct(rng):
    config = RouterConfig(15, 4, 5, 2)
    routing, _ = route_tokens_forward(rng.uniform(size=(31, 15)), rng.normal(size=15) * 0.2, config)
    assert all(len(set(row)) == 4 for row in routing.index_NA.tolist())
    assert all(len({e // 3 for e in row}) <= 2 for row in routing.index_NA.tolist())


def test_the_gradient_of_the_router_is_the_central_difference(rng, check_gradients):
    config = RouterConfig(6, 3, 3, 2)
    score, bias, pull = rng.uniform(0.1, 0.9, size=(5, 6)), rng.normal(size=6) * 0.1, rng.normal(size=(5, 3))
    _, cache = route_tokens_forward(score, bias, config)
    check_gradients(
        lambda: float((route_tokens_forward(score, bias, config)[0].gate_NA * pull).sum()),
        {"score": score, "bias": bias},
        {"score": route_tokens_backward(pull, cache), "bias": np.zeros(6)},
    )


@pytest.mark.parametrize(
    ("batch", "length", "width", "hidden", "n_shared", "config"),
    [
        (2, 4, 5, 3, 2, RouterConfig(6, 3, 3, 2)),
        (1, 1, 1, 1, 1, RouterConfig(2, 2, 1, 1)),
        (1, 3, 2, 7, 1, RouterConfig(5, 2, 5, 3)),
    ],
)
def test_the_gradient_of_the_layer_with_its_balance_loss_is_the_central_difference(
    batch, length, width, hidden, n_shared, config, rng, check_gradients
):
    weights = build_layer(rng, config, width, hidden, n_shared)
    n_experts, n_activated = config.n_routed_experts, config.num_experts_per_tok
    x, pull = rng.normal(size=(batch * length, width)), rng.normal(size=(batch * length, width))

    def balance(cache):
        return sequence_balance_forward(cache.score_NE.reshape(batch, length, n_experts), n_activated, 0.5)

    def loss():
        y, cache = deepseek_moe_forward(x, weights, config)
        return float((y * pull).sum()) + balance(cache)[0]

    _, cache = deepseek_moe_forward(x, weights, config)
    dscore = sequence_balance_backward(1.0, balance(cache)[1]).reshape(batch * length, n_experts)
    dx, grads = deepseek_moe_backward(pull, cache, dscore)
    check_gradients(loss, {"x": x, **weights.trainable()}, {"x": dx, **grads})


def test_the_bias_is_not_among_the_gradients(rng):
    weights = build_layer(rng, GOLDEN, 5, 3)
    _, grads = deepseek_moe_backward(np.ones((7, 5)), deepseek_moe_forward(np.ones((7, 5)), weights, GOLDEN)[1])
    assert grads.keys() == weights.trainable().keys()
    assert not [name for name in grads if "bias" in name]


def test_the_balance_loss_reaches_the_router_and_nothing_else(rng):
    weights, x = build_layer(rng, GOLDEN, 5, 3), rng.normal(size=(7, 5))
    _, cache = deepseek_moe_forward(x, weights, GOLDEN)
    _, balance_cache = sequence_balance_forward(cache.score_NE[None], 2, 1.0)
    dscore = sequence_balance_backward(1.0, balance_cache)[0]
    _, grads = deepseek_moe_backward(np.zeros((7, 5)), cache, dscore)
    assert np.abs(grads.pop("gate.weight")).max() > 1e-4
    assert all(not grad.any() for grad in grads.values())


def test_sorted_dispatch_equals_running_every_expert_on_every_token(rng):
    config = RouterConfig(12, 4, 3, 2)
    weights, x = build_layer(rng, config, 5, 3), rng.normal(size=(31, 5))
    y, cache = deepseek_moe_forward(x, weights, config)
    gate_NE = scatter_to_experts(cache.routing.gate_NA, cache.routing.index_NA, 12)
    shared = weights.shared_experts
    shared_as_expert = SwiGLUExperts(shared.gate_proj[None], shared.up_proj[None], shared.down_proj[None])
    want = np.einsum("ne,ned->nd", gate_NE, every_expert_forward(x, weights.experts)[0])
    want += every_expert_forward(x, shared_as_expert)[0][:, 0]  # V3 Eq. (12): no gate, no scale
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-13)


def test_the_shared_expert_is_neither_gated_nor_scaled(rng):
    weights, x = build_layer(rng, GOLDEN, 5, 3), rng.normal(size=(7, 5))
    y, cache = deepseek_moe_forward(x, weights, GOLDEN)
    routed, _ = routed_experts_forward(x, cache.routing, weights.experts)
    shared = weights.shared_experts
    alone, _ = swiglu_slice_forward(x, shared.gate_proj, shared.up_proj, shared.down_proj)
    np.testing.assert_allclose(y - routed, alone, rtol=1e-10, atol=1e-13)


def test_runs_cover_all_choices_and_hold_one_expert_each(rng):
    index = np.array([[4, 0], [0, 4], [4, 2]])
    order, runs = sort_by_expert(index, 7)
    assert [(e, run.stop - run.start) for e, run in runs] == [(0, 2), (2, 1), (4, 3)]
    assert sorted(order.tolist()) == list(range(6))
    assert all((index.ravel()[order[run]] == e).all() for e, run in runs)


def test_every_visited_expert_runs_once_however_many_tokens_come(rng, monkeypatch):
    """Not a loop over tokens: the number of products does not grow with the batch."""
    import deepseek_moe

    calls = []
    one_slice = deepseek_moe.swiglu_slice_forward
    monkeypatch.setattr(deepseek_moe, "swiglu_slice_forward", lambda x, *w: (calls.append(len(x)), one_slice(x, *w))[1])
    experts, x = SwiGLUExperts.init(rng, 7, 3, 2), rng.normal(size=(101, 3))
    index = np.stack([np.arange(101) % 5, np.arange(101) % 5 + 1], axis=1)  # nobody visits expert 6
    routed_experts_forward(x, Routing(index, np.ones((101, 2))), experts)
    assert len(calls) == 6
    assert sum(calls) == 202


def test_tokens_do_not_see_each_other(rng):
    weights, x = build_layer(rng, GOLDEN, 5, 3), rng.normal(size=(11, 5))
    whole, _ = deepseek_moe_forward(x, weights, GOLDEN)
    alone = np.concatenate([deepseek_moe_forward(row[None], weights, GOLDEN)[0] for row in x])
    np.testing.assert_allclose(whole, alone, rtol=1e-11, atol=1e-13)


def test_renaming_the_experts_changes_nothing(rng):
    config = RouterConfig(7, 3, 1, 1)
    weights, x, swap = build_layer(rng, config, 5, 3), rng.normal(size=(11, 5)), rng.permutation(7)
    renamed = DeepseekMoE(
        replace(
            weights.gate,
            weight=weights.gate.weight[swap],
            e_score_correction_bias=weights.gate.e_score_correction_bias[swap],
        ),
        SwiGLUExperts(*(getattr(weights.experts, f)[swap] for f in ("gate_proj", "up_proj", "down_proj"))),
        weights.shared_experts,
    )
    y, cache = deepseek_moe_forward(x, weights, config)
    other, other_cache = deepseek_moe_forward(x, renamed, config)
    np.testing.assert_allclose(other, y, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(other_cache.load_E, cache.load_E[swap])


def test_nothing_moves_the_bias_but_the_update(rng):
    weights, x = build_layer(rng, GOLDEN, 5, 3), rng.normal(size=(11, 5))
    bias = weights.gate.e_score_correction_bias
    kept = bias.copy()
    _, cache = deepseek_moe_forward(x, weights, GOLDEN)
    deepseek_moe_backward(x, cache)
    np.testing.assert_array_equal(bias, kept)
    moved = update_bias(bias, cache.load_E, 0.001)
    assert moved[cache.load_E.argmax()] < kept[cache.load_E.argmax()]


def test_the_load_is_that_of_the_choice_with_bias(rng):
    weights, x = build_layer(rng, GOLDEN, 5, 3), rng.normal(size=(11, 5))
    weights.gate.e_score_correction_bias[:] = [0, 0, 0, 0, 0, 0, 9, 9]
    _, cache = deepseek_moe_forward(x, weights, GOLDEN)
    assert cache.load_E.tolist() == [0, 0, 0, 0, 0, 0, 11, 11]


def test_float32_stays_float32(rng):
    layer = build_layer(rng, GOLDEN, 5, 3)

    def shrink(part):
        return type(part)(**{name: array.astype(np.float32) for name, array in vars(part).items()})

    small = DeepseekMoE(shrink(layer.gate), shrink(layer.experts), shrink(layer.shared_experts))
    x = rng.normal(size=(11, 5)).astype(np.float32)
    y, cache = deepseek_moe_forward(x, small, GOLDEN)
    _, balance_cache = sequence_balance_forward(cache.score_NE[None], 2, 1e-4)
    dscore = sequence_balance_backward(1.0, balance_cache)[0]
    dx, grads = deepseek_moe_backward(y, cache, dscore)
    found = {a.dtype for a in (y, cache.score_NE, cache.routing.gate_NA, dscore, dx, *grads.values())}
    assert found == {np.dtype(np.float32)}
    reference, _ = deepseek_moe_forward(x.astype(np.float64), layer, GOLDEN)
    np.testing.assert_allclose(y, reference, rtol=1e-4, atol=1e-5)


def test_scores_that_all_underflow_give_zeros_and_not_nan():
    routing, cache = route_tokens_forward(np.zeros((1, 8)), np.zeros(8), GOLDEN)
    assert (routing.gate_NA == 0).all()
    assert np.isfinite(route_tokens_backward(np.zeros((1, 2)), cache)).all()


def test_a_config_that_cannot_work_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="n_group=3 does not divide n_routed_experts=8"):
        RouterConfig(8, 2, 3, 2)
    with pytest.raises(ValueError, match="2 groups of 2 hold 4 experts"):
        RouterConfig(8, 5, 4, 2)
    with pytest.raises(ValueError, match="topk_group=5 must be 1 to n_group=4"):
        RouterConfig(8, 2, 4, 5)
    with pytest.warns(UserWarning, match="no gradient of the task reaches the router"):
        RouterConfig(8, 1, 4, 2)


def test_one_expert_gate_gradient_is_silent_and_two_are_not(rng):
    with pytest.warns(UserWarning, match="num_experts_per_tok=1"):
        single = RouterConfig(6, 1, 1, 1)
    score = rng.uniform(0.1, 0.9, size=(5, 6))
    for config, silent in ((single, True), (RouterConfig(6, 2, 1, 1), False), (RouterConfig(6, 5, 1, 1), False)):
        pull = rng.normal(size=(5, config.num_experts_per_tok))
        _, cache = route_tokens_forward(score, np.zeros(6), config)
        assert (np.abs(route_tokens_backward(pull, cache)).max() < 1e-12) == silent


def test_routed_experts_accept_any_routing_even_one_that_leaves_experts_idle(rng):
    experts, x = SwiGLUExperts.init(rng, 7, 3, 2), rng.normal(size=(5, 3))
    routing = Routing(np.full((5, 1), 4), np.ones((5, 1)))
    y, _ = routed_experts_forward(x, routing, experts)
    np.testing.assert_allclose(y, every_expert_forward(x, experts)[0][:, 4], rtol=1e-12)
