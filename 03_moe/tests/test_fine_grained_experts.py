"""Equal cost, more teams; pieces that add up to the whole; shared experts without a gate."""

from math import comb

import numpy as np
import pytest
from expert_routing import softmax_gate_forward
from fine_grained_experts import (
    Segmentation,
    SwiGLUExperts,
    count_grouped_combinations,
    every_expert_backward,
    every_expert_forward,
    fine_grained_backward,
    fine_grained_forward,
    merge_experts,
    split_experts,
)

FIELDS = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("n_tokens", "width", "n_experts", "hidden", "n_shared", "n_activated"), [(5, 3, 7, 2, 2, 3), (1, 1, 3, 1, 1, 1)]
)
def test_the_gradient_of_the_layer_is_the_central_difference(
    n_tokens, width, n_experts, hidden, n_shared, n_activated, rng, check_gradients
):
    x, pull = rng.normal(size=(n_tokens, width)), rng.normal(size=(n_tokens, width))
    weight = rng.normal(size=(n_experts, width))
    routed, shared = (SwiGLUExperts.init(rng, n, width, hidden) for n in (n_experts, n_shared))

    def forward():
        return fine_grained_forward(x, weight, routed, shared, n_activated)

    dx, dweight, drouted, dshared = fine_grained_backward(pull, forward()[1])
    check_gradients(
        lambda: float((forward()[0] * pull).sum()),
        {
            "x": x,
            "weight": weight,
            **{f"routed.{f}": getattr(routed, f) for f in FIELDS},
            **{f"shared.{f}": getattr(shared, f) for f in FIELDS},
        },
        {
            "x": dx,
            "weight": dweight,
            **{f"routed.{f}": getattr(drouted, f) for f in FIELDS},
            **{f"shared.{f}": getattr(dshared, f) for f in FIELDS},
        },
    )


def test_experts_agree_with_torch(rng):
    torch = pytest.importorskip("torch")
    x, dy, experts = rng.normal(size=(5, 3)), rng.normal(size=(5, 7, 3)), SwiGLUExperts.init(rng, 7, 3, 2)
    y, cache = every_expert_forward(x, experts)
    dx, grads = every_expert_backward(dy, cache)
    leaves = {f: torch.tensor(getattr(experts, f), requires_grad=True) for f in FIELDS}
    leaf_x = torch.tensor(x, requires_grad=True)
    hidden = torch.nn.functional.silu(leaf_x @ leaves["gate_proj"].mT) * (leaf_x @ leaves["up_proj"].mT)
    theirs = (hidden @ leaves["down_proj"].mT).transpose(0, 1)
    theirs.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-11)
    np.testing.assert_allclose(dx, leaf_x.grad.numpy(), rtol=1e-10)
    for f in FIELDS:
        np.testing.assert_allclose(getattr(grads, f), leaves[f].grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_the_pieces_of_an_expert_add_up_to_it(m, rng):
    x, wide = rng.normal(size=(5, 3)), SwiGLUExperts.init(rng, 7, 3, 6)
    thin = split_experts(wide, m)
    assert thin.gate_proj.shape == (7 * m, 6 // m, 3)
    pieces = every_expert_forward(x, thin)[0].reshape(5, 7, m, 3)
    np.testing.assert_allclose(pieces.sum(axis=2), every_expert_forward(x, wide)[0], rtol=1e-12, atol=1e-14)


def test_merging_undoes_splitting_and_sums_shared_experts(rng):
    x, wide, shared = rng.normal(size=(5, 3)), SwiGLUExperts.init(rng, 1, 3, 6), SwiGLUExperts.init(rng, 2, 3, 5)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(merge_experts(split_experts(wide, 3)), field), getattr(wide, field))
    one = merge_experts(shared)
    assert one.gate_proj.shape == (1, 10, 3)
    np.testing.assert_allclose(
        every_expert_forward(x, one)[0][:, 0], every_expert_forward(x, shared)[0].sum(axis=1), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("m", [2, 4, 8])
def test_cutting_and_sharing_keep_the_cost_and_change_the_teams(m):
    coarse = Segmentation(n_routed=16, n_activated=2, hidden=512)
    for fine in (coarse.cut(m), coarse.cut(m).share(1)):
        assert fine.total_parameters(64) == coarse.total_parameters(64)
        assert fine.active_parameters(64) == coarse.active_parameters(64)
        assert fine.combinations > coarse.combinations


def test_the_teams_of_the_papers():
    coarse = Segmentation(16, 2, 512)
    assert coarse.combinations == 120
    assert coarse.cut(4).combinations == 4_426_165_368
    assert comb(256, 8) == 409_663_695_276_000


def test_the_parameters_of_v3_come_out():
    layer = Segmentation(n_routed=256, n_activated=8, hidden=2048, n_shared=1)
    assert layer.total_parameters(7168) // 257 == 44_040_192  # one expert
    assert layer.active_parameters(7168) == 9 * 44_040_192


def test_groups_are_counted_as_a_brute_force_count_does():
    from itertools import combinations

    for n_experts, n_activated, n_group, topk_group in ((6, 3, 3, 2), (8, 2, 4, 1), (8, 4, 2, 2)):
        size = n_experts // n_group
        teams = combinations(range(n_experts), n_activated)
        want = sum(len({e // size for e in team}) <= topk_group for team in teams)
        assert count_grouped_combinations(n_experts, n_activated, n_group, topk_group) == want


def test_a_shared_expert_has_no_gate(rng):
    x, weight, routed = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), SwiGLUExperts.init(rng, 7, 3, 2)
    shared = SwiGLUExperts.init(rng, 2, 3, 2)
    silent = SwiGLUExperts(*(np.zeros_like(getattr(shared, f)) for f in FIELDS))
    with_shared, _ = fine_grained_forward(x, weight, routed, shared, 3)
    without, _ = fine_grained_forward(x, weight, routed, silent, 3)
    np.testing.assert_allclose(with_shared - without, every_expert_forward(x, shared)[0].sum(axis=1), rtol=1e-11)


def test_pieces_that_are_always_chosen_together_are_the_coarse_layer(rng):
    """A router that gives the m pieces of an expert one gate loses nothing by the cut: fine contains coarse."""
    x, weight, wide = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), SwiGLUExperts.init(rng, 7, 3, 6)
    routing, _ = softmax_gate_forward(x, weight, 2)
    coarse = np.take_along_axis(every_expert_forward(x, wide)[0], routing.index_NA[..., None], axis=1)
    thin = every_expert_forward(x, split_experts(wide, 3))[0]
    index = (routing.index_NA[..., None] * 3 + np.arange(3)).reshape(5, 6)
    fine = np.take_along_axis(thin, index[..., None], axis=1)
    np.testing.assert_allclose(
        np.einsum("na,nad->nd", np.repeat(routing.gate_NA, 3, axis=1), fine),
        np.einsum("na,nad->nd", routing.gate_NA, coarse),
        rtol=1e-11,
    )


def test_impossible_cuts_are_refused():
    with pytest.raises(ValueError, match="m=3 does not divide the hidden width 512"):
        Segmentation(16, 2, 512).cut(3)
    with pytest.raises(ValueError, match="cannot share 2 of 2 activated experts"):
        Segmentation(16, 2, 512).share(2)
