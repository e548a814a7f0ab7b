"""Gates, choices, and what gradient reaches the router."""

import numpy as np
import pytest
from expert_routing import (
    choose_top_experts,
    count_load,
    normalize_gates_forward,
    scatter_to_experts,
    sigmoid,
    sigmoid_gate_backward,
    sigmoid_gate_forward,
    sigmoid_scores_backward,
    sigmoid_scores_forward,
    softmax_gate_backward,
    softmax_gate_forward,
    softmax_scores_backward,
    softmax_scores_forward,
)

GATES = {
    "softmax": (softmax_gate_forward, softmax_gate_backward),
    "sigmoid": (sigmoid_gate_forward, sigmoid_gate_backward),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(("n_tokens", "width", "n_experts", "n_activated"), [(5, 3, 7, 2), (1, 2, 3, 3), (3, 1, 5, 4)])
def test_the_gradient_of_the_gate_is_the_central_difference(
    name, n_tokens, width, n_experts, n_activated, rng, check_gradients
):
    forward, backward = GATES[name]
    x, weight = rng.normal(size=(n_tokens, width)), rng.normal(size=(n_experts, width))
    pull = rng.normal(size=(n_tokens, n_activated))
    dx, dweight = backward(pull, forward(x, weight, n_activated)[1])
    check_gradients(
        lambda: float((forward(x, weight, n_activated)[0].gate_NA * pull).sum()),
        {"x": x, "weight": weight},
        {"x": dx, "weight": dweight},
    )


def test_scores_agree_with_torch(rng):
    torch = pytest.importorskip("torch")
    logits, dscore = rng.normal(size=(5, 7)) * 3, rng.normal(size=(5, 7))
    for forward, backward, theirs in (
        (softmax_scores_forward, softmax_scores_backward, lambda t: t.softmax(-1)),
        (sigmoid_scores_forward, sigmoid_scores_backward, lambda t: t.sigmoid()),
    ):
        leaf = torch.tensor(logits, requires_grad=True)
        score = theirs(leaf)
        score.backward(torch.tensor(dscore))
        ours, cache = forward(logits)
        np.testing.assert_allclose(ours, score.detach().numpy(), rtol=1e-13)  # V3 Eq. (15)
        np.testing.assert_allclose(backward(dscore, cache), leaf.grad.numpy(), rtol=1e-12, atol=1e-15)


def test_the_sigmoid_survives_any_logit_and_keeps_the_dtype():
    x = np.array([-1e4, -40.0, 0.0, 40.0, 1e4])
    np.testing.assert_allclose(sigmoid(x)[1:4], [1 / (1 + np.exp(40.0)), 0.5, 1.0], rtol=1e-12)
    assert sigmoid(x)[0] == 0
    assert sigmoid(x)[4] == 1
    assert sigmoid(x.astype(np.float32)).dtype == np.float32


def test_choices_come_best_first_and_a_tie_goes_to_the_lower_index():
    assert choose_top_experts(np.array([[0.2, 0.9, 0.9, 0.5]]), 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("n_activated", [0, 8])
def test_an_impossible_choice_is_refused(n_activated):
    with pytest.raises(ValueError, match="of 7 experts; take 1 to 7"):
        choose_top_experts(np.zeros((2, 7)), n_activated)


def test_loads_add_up_to_all_choices_and_count_experts_that_nobody_chose():
    assert count_load(np.array([[0, 2], [2, 0], [2, 1]]), 5).tolist() == [2, 1, 3, 0, 0]


def test_picking_and_scattering_are_transposes(rng):
    full, index = rng.normal(size=(5, 7)), choose_top_experts(rng.normal(size=(5, 7)), 3)
    values = rng.normal(size=(5, 3))
    picked = np.take_along_axis(full, index, axis=-1)
    assert (picked * values).sum() == pytest.approx((full * scatter_to_experts(values, index, 7)).sum())


def test_normalised_gates_sum_to_one_and_zero_scores_give_zero_gates():
    gates, _ = normalize_gates_forward(np.array([[0.6, 0.2], [0.0, 0.0]]))
    np.testing.assert_allclose(gates, [[0.75, 0.25], [0, 0]])


def test_a_softmax_gate_hears_of_experts_that_it_did_not_choose_and_a_sigmoid_gate_does_not(rng):
    x, weight = rng.normal(size=(1, 3)), rng.normal(size=(7, 3))
    heard = {}
    for name, (forward, backward) in GATES.items():
        routing, cache = forward(x, weight, 2)
        _, dweight = backward(np.array([[1.0, -2.0]]), cache)
        silent = np.setdiff1d(np.arange(7), routing.index_NA)
        heard[name] = np.abs(dweight[silent]).max()
    assert heard["softmax"] > 1e-6
    assert heard["sigmoid"] == 0


def test_one_normalised_expert_teaches_the_router_nothing_and_says_so(rng):
    x, weight = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    with pytest.warns(UserWarning, match="no gradient reaches the router"):
        routing, cache = sigmoid_gate_forward(x, weight, 1)
    np.testing.assert_array_equal(routing.gate_NA, np.ones((5, 1)))
    # S / S = 1 up to rounding: the gradient is a rounding error where two would be of order 1
    assert np.abs(sigmoid_gate_backward(rng.normal(size=(5, 1)), cache)[1]).max() < 1e-12


@pytest.mark.parametrize("n_activated", [2, 3, 5, 7])
def test_the_task_reaches_the_router_for_every_larger_choice(n_activated, rng):
    x, weight = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    _, cache = sigmoid_gate_forward(x, weight, n_activated)
    assert np.abs(sigmoid_gate_backward(rng.normal(size=(5, n_activated)), cache)[1]).max() > 1e-3


def test_a_pull_on_all_gates_alike_moves_a_normalised_router_not_at_all(rng):
    x, weight = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    _, cache = sigmoid_gate_forward(x, weight, 3)
    assert np.abs(sigmoid_gate_backward(np.ones((5, 3)), cache)[1]).max() < 1e-12
