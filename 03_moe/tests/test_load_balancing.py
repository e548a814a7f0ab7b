"""The auxiliary losses: their golden numbers, their optimum, and where their gradient goes."""

import numpy as np
import pytest
from expert_routing import choose_top_experts, softmax_scores_forward
from load_balancing import (
    communication_balance_backward,
    communication_balance_forward,
    device_balance_backward,
    device_balance_forward,
    expert_balance_backward,
    expert_balance_forward,
    sequence_balance_backward,
    sequence_balance_forward,
)

LEVELS = {
    "expert": (expert_balance_forward, expert_balance_backward, ()),
    "device": (device_balance_forward, device_balance_backward, (3,)),
    "communication": (communication_balance_forward, communication_balance_backward, (3, 2)),
}


def deal_scores(n_activated, n_experts, rounds):
    """Scores whose top choices go round all experts, so that each is chosen equally often and scores the same sum."""
    rows = []
    for t in range(rounds * n_experts):
        row = np.full(n_experts, 0.1)
        row[(t + np.arange(n_activated)) % n_experts] = 0.7
        rows.append(row)
    return np.array(rows)[None]


@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_of_each_level_is_the_central_difference(level, rng, check_gradients):
    forward, backward, sizes = LEVELS[level]
    score = softmax_scores_forward(rng.normal(size=(11, 6)))[0]
    index = choose_top_experts(score, 2)
    _, cache = forward(score, index, *sizes, 0.7)
    check_gradients(
        lambda: 3.0 * forward(score, index, *sizes, 0.7)[0], {"score": score}, {"score": backward(3.0, cache)}
    )


@pytest.mark.parametrize(("batch", "length", "n_experts", "n_activated"), [(2, 5, 7, 3), (1, 1, 3, 2), (3, 2, 1, 1)])
def test_the_gradient_of_the_sequence_loss_is_the_central_difference(
    batch, length, n_experts, n_activated, rng, check_gradients
):
    score = rng.uniform(0.1, 0.9, size=(batch, length, n_experts))
    _, cache = sequence_balance_forward(score, n_activated, 0.7)
    check_gradients(
        lambda: 3.0 * sequence_balance_forward(score, n_activated, 0.7)[0],
        {"score": score},
        {"score": sequence_balance_backward(3.0, cache)},
    )


def test_the_golden_sequence():
    score = np.array([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])  # V3 Eq. (17), V3 Eq. (18), V3 Eq. (19)
    loss, (slope, share, _) = sequence_balance_forward(score, 2, 1.0)
    np.testing.assert_allclose(slope * 2, [[2, 0, 2, 0]])
    np.testing.assert_allclose(share.mean(axis=1), [[0.425, 0.075, 0.275, 0.225]])  # V3 Eq. (20)
    assert loss == pytest.approx(1.4, rel=1e-12)


@pytest.mark.parametrize("n_activated", [1, 2, 3, 5, 7])
def test_balance_costs_exactly_alpha_for_every_number_of_activated_experts(n_activated):
    score = deal_scores(n_activated, 7, 2)
    assert sequence_balance_forward(score, n_activated, 1e-4)[0] == pytest.approx(1e-4, rel=1e-12)
    soft = score[0] / score[0].sum(axis=-1, keepdims=True)
    index = choose_top_experts(soft, n_activated)
    assert expert_balance_forward(soft, index, 1e-4)[0] == pytest.approx(1e-4, rel=1e-12)


def test_scaling_all_scores_of_a_token_changes_nothing(rng):
    score = rng.uniform(0.1, 0.9, size=(2, 5, 7))
    scaled = score * rng.uniform(0.2, 1.0, size=(2, 5, 1))
    assert sequence_balance_forward(scaled, 3, 1.0)[0] == pytest.approx(sequence_balance_forward(score, 3, 1.0)[0])


def test_the_sequence_loss_sees_a_skew_that_the_pooled_batch_hides():
    score = np.full((2, 6, 4), 0.1)
    score[0, :, :2], score[1, :, 2:] = 0.8, 0.8  # each sequence uses one half of the experts, the batch uses all
    pooled = sequence_balance_forward(score.reshape(1, 12, 4), 2, 1.0)[0]
    assert pooled == pytest.approx(1.0)
    assert sequence_balance_forward(score, 2, 1.0)[0] == pytest.approx(2 * 0.8 / 0.9)


def test_the_order_of_tokens_and_of_sequences_does_not_matter(rng):
    score = rng.uniform(0.1, 0.9, size=(3, 5, 7))
    shuffled = rng.permutation(rng.permutation(score, axis=0), axis=1)
    assert sequence_balance_forward(shuffled, 3, 1.0)[0] == pytest.approx(sequence_balance_forward(score, 3, 1.0)[0])


def test_the_gradient_pushes_the_busiest_expert_down_the_hardest():
    score = np.array([[[0.9, 0.1, 0.2], [0.8, 0.3, 0.2], [0.7, 0.2, 0.4]]])
    _, cache = sequence_balance_forward(score, 1, 1.0)
    dscore = sequence_balance_backward(1.0, cache)
    assert (dscore[0, :, 0] > 0).all()  # a step down the gradient lowers expert 0
    assert (dscore[0, :, 1:] < 0).all()


def test_the_device_level_leaves_experts_on_one_device_alone():
    skewed = np.tile([0.7, 0.1, 0.1, 0.1], (4, 1))
    index = np.array([[0, 2]] * 4)  # one expert of each device takes everything
    assert device_balance_forward(skewed[:, [0, 1, 2, 3]], index, 2, 1.0)[0] == pytest.approx(1.0)
    assert expert_balance_forward(skewed, index, 1.0)[0] > 1.5


def test_one_device_for_each_expert_is_the_expert_level_and_one_for_all_is_constant(rng):
    score = softmax_scores_forward(rng.normal(size=(11, 6)))[0]
    index = choose_top_experts(score, 2)
    assert device_balance_forward(score, index, 6, 1.0)[0] == pytest.approx(
        expert_balance_forward(score, index, 1.0)[0]
    )
    assert device_balance_forward(score, index, 1, 1.0)[0] == pytest.approx(1.0)


def test_a_token_travels_to_a_device_once_however_many_experts_it_meets_there():
    flat = np.full((4, 4), 0.25)
    together, apart = np.array([[0, 1]] * 4), np.array([[0, 2]] * 4)
    # 2 devices, at most 2 for each token: a copy counts 2/(2*4), and the flat scores give each device P = 1/2
    assert communication_balance_forward(flat, together, 2, 2, 1.0)[0] == pytest.approx(0.5)
    assert communication_balance_forward(flat, apart, 2, 2, 1.0)[0] == pytest.approx(1.0)


def test_experts_that_do_not_divide_over_devices_are_refused():
    with pytest.raises(ValueError, match="7 experts do not divide over 2 devices"):
        device_balance_forward(np.full((3, 7), 1 / 7), np.zeros((3, 1), dtype=int), 2, 1.0)


def test_the_gradient_agrees_with_torch(rng):
    torch = pytest.importorskip("torch")
    score = rng.uniform(0.1, 0.9, size=(2, 5, 7))
    leaf = torch.tensor(score, requires_grad=True)
    share = leaf / leaf.sum(-1, keepdim=True)
    chosen = torch.zeros_like(leaf).scatter(-1, leaf.topk(3, dim=-1).indices, 1.0)
    loss = 0.3 * (chosen.sum(1) * 7 / (3 * 5) * share.mean(1)).sum(-1).mean()
    loss.backward()
    ours, cache = sequence_balance_forward(score, 3, 0.3)
    assert ours == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(sequence_balance_backward(1.0, cache), leaf.grad.numpy(), rtol=1e-11, atol=1e-16)
