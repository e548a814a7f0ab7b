"""Replay gives the sampler's choice, recomputed gates, and a router that still learns."""

import numpy as np
import pytest
from router_replay import (
    MoeWeights,
    choose_experts,
    find_rerouted,
    measure_mismatch,
    moe_backward,
    moe_forward,
    recompute_gates_forward,
    round_mantissa,
    round_weights,
    truncated_weights,
)


@pytest.fixture
def layer(rng):
    """Five experts of width 3 on tokens of width 7, and 11 tokens."""
    return MoeWeights.init(rng, D=7, E=5, F=3, V=13), rng.standard_normal((11, 7))


@pytest.mark.parametrize("replayed", [False, True])
def test_the_gradients_agree_with_central_differences(replayed, layer, rng, check_gradients):
    weights, x = layer
    replay = np.array([rng.permutation(5)[:2] for _ in range(11)]) if replayed else None
    logits, _, cache = moe_forward(weights, x, replay)
    dlogits = rng.standard_normal(logits.shape)
    check_gradients(
        lambda: float((dlogits * moe_forward(weights, x, replay)[0]).sum()),
        weights._asdict(),
        moe_backward(dlogits, cache)._asdict(),
    )


def test_replay_takes_the_choice_and_weighs_it_by_todays_scores(layer):
    weights, x = layer
    _, choice, _ = moe_forward(weights, x)
    moved = weights._replace(router_ED=weights.router_ED + 0.7 * np.ones_like(weights.router_ED[:1]) * x[0])
    _, index, cache = moe_forward(moved, x, choice)
    assert (index == choice).all()
    score = 1 / (1 + np.exp(-np.take_along_axis(x @ moved.router_ED.T, choice, axis=1)))
    np.testing.assert_allclose(cache[3], score / score.sum(axis=1, keepdims=True), rtol=1e-13)
    before = recompute_gates_forward(weights.router_ED, x, choice)[0]
    assert np.abs(cache[3] - before).max() > 1e-2  # old gates would be other numbers


def test_replaying_the_own_choice_changes_nothing(layer):
    weights, x = layer
    logits, choice, _ = moe_forward(weights, x)
    assert (moe_forward(weights, x, choice)[0] == logits).all()


def test_the_router_learns_from_a_replayed_choice(layer, rng):
    weights, x = layer
    logits, _, cache = moe_forward(weights, x, choose_experts(round_weights(weights, 3), x))
    gradient = moe_backward(rng.standard_normal(logits.shape), cache)
    assert (np.abs(gradient.router_ED).max(axis=1) > 0).all()


def test_with_replay_no_token_is_rerouted_and_the_ratio_stays_near_one(rng):
    weights, x = MoeWeights.init(rng), rng.standard_normal((4_000, 16))
    sampler = round_weights(weights, 3)
    own, replayed = (measure_mismatch(rng, weights, sampler, x, replay=r) for r in (False, True))
    assert own.rerouted_N.mean() > 0.01
    assert not replayed.rerouted_N.any()
    far = [np.quantile(np.abs(np.log(m.ratio_N)), 0.995) for m in (own, replayed)]
    assert far[1] < far[0] / 3


def test_the_order_of_the_chosen_is_no_other_route():
    assert find_rerouted(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 0]])).tolist() == [False, True]


@pytest.mark.parametrize(("bits", "name"), [(23, "float32"), (10, "float16")])
def test_rounding_a_mantissa_is_the_cast_to_that_format(bits, name, rng):
    x = rng.standard_normal(1_000)
    assert (round_mantissa(x, bits) == x.astype(name).astype(float)).all()


def test_rounding_to_bf16_is_the_cast_of_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(1_000)
    assert (round_mantissa(x, 7) == torch.tensor(x).bfloat16().double().numpy()).all()
    assert round_mantissa(np.zeros(2), 7).tolist() == [0, 0]


def test_truncated_weights_have_a_ceiling_and_no_floor():
    assert truncated_weights(np.array([0.1, 1.0, 5.0])).tolist() == [0.1, 1.0, 2.0]
