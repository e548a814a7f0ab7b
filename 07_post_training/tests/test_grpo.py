"""Advantages, clipping, divergence and the named losses: gradients, properties, and autograd as the judge."""

import numpy as np
import pytest
from grpo import (
    LOSSES,
    Batch,
    centered_advantages,
    cispo_backward,
    cispo_forward,
    clipped_backward,
    clipped_forward,
    corrected_kl_backward,
    corrected_kl_forward,
    dapo_forward,
    dr_grpo_forward,
    group_advantages,
    grpo_backward,
    grpo_forward,
    grpo_step,
    gspo_backward,
    gspo_forward,
    informative_groups,
    kl_estimate_backward,
    kl_estimate_forward,
    report_grpo_backward,
    report_grpo_forward,
    token_loss_backward,
)
from policy_gradient import reinforce_backward, reinforce_forward
from supervised_fine_tuning import warm_start
from token_policy import Adam, log_softmax, measure_accuracy, sorting_problems

PAIRS = {
    "grpo": (lambda p, b: grpo_forward(p, b, beta=0.3), grpo_backward),
    "dr_grpo": (lambda p, b: dr_grpo_forward(p, b, max_length=11, beta=0.3), token_loss_backward),
    "dapo": (dapo_forward, token_loss_backward),
    "gspo": (lambda p, b: gspo_forward(p, b, 0.05, 0.07), gspo_backward),
    "report": (lambda p, b: report_grpo_forward(p, b, beta=0.3), report_grpo_backward),
}


@pytest.fixture
def case(rng):
    """Seven answers of 1 to 5 tokens, written by weights that have moved since; advantages of both signs."""
    written = np.arange(5) < np.array([5, 2, 3, 1, 4, 5, 2])[:, None]
    old = -3 * rng.random((7, 5))
    reference = old + 0.3 * rng.standard_normal((7, 5))
    return old + 0.8 * rng.standard_normal((7, 5)), Batch(old, written, rng.standard_normal(7), reference)


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_agrees_with_central_differences(name, case, check_gradients):
    logp, batch = case
    forward, backward = PAIRS[name]
    check_gradients(lambda: forward(logp, batch)[0], {"logp": logp}, {"logp": backward(1.0, forward(logp, batch)[1])})


def test_some_tokens_of_the_case_are_clipped_and_some_are_not(case):
    logp, batch = case
    kept = clipped_forward(np.exp(logp - batch.old_BS), batch.advantage_B[:, None])[1][0][batch.written_BS]
    assert 3 <= kept.sum() < len(kept) - 2


def torch_losses(torch, logp, batch):
    """The same losses in the words of the papers, for autograd to differentiate."""
    old, ref = torch.tensor(batch.old_BS), torch.tensor(batch.reference_BS)
    mask, advantage = torch.tensor(batch.written_BS).double(), torch.tensor(batch.advantage_B)
    length, ratio, a = mask.sum(1), torch.exp(logp - old), advantage[:, None]
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    clip = lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)  # noqa: E731
    sequence = torch.exp(((logp - old) * mask).sum(1) / length)
    whole, rho = torch.exp(((logp - old) * mask).sum(1)), torch.exp(((ref - logp) * mask).sum(1))
    token = clip(ratio, a, 0.2, 0.2) - 0.3 * kl
    return {
        "grpo": -((token * mask).sum(1) / length).mean(),
        "dr_grpo": -(token * mask).sum() / (7 * 11),
        "dapo": -(clip(ratio, a, 0.2, 0.28) * mask).sum() / mask.sum(),
        "gspo": -clip(sequence, advantage, 0.05, 0.07).mean(),
        "report": -(clip(whole, advantage, 0.2, 0.2) - 0.3 * (rho - rho.log() - 1)).mean(),  # V3 Eq. (26)
        "cispo": -(ratio.detach().clamp(0, 1.28) * a * logp * mask).sum() / mask.sum(),
    }


@pytest.mark.parametrize("name", [*PAIRS, "cispo"])
def test_autograd_agrees(name, case):
    torch = pytest.importorskip("torch")
    logp, batch = case
    leaf = torch.tensor(logp, requires_grad=True)
    want = torch_losses(torch, leaf, batch)[name]
    want.backward()
    forward, backward = {**PAIRS, "cispo": (cispo_forward, cispo_backward)}[name]
    loss, cache = forward(logp, batch)
    assert loss == pytest.approx(want.item(), rel=1e-12)
    np.testing.assert_allclose(backward(1.0, cache), leaf.grad.numpy(), rtol=1e-10, atol=1e-15)


def test_the_gradient_of_cispo_agrees_with_differences_while_the_weights_are_held(case, check_gradients):
    logp, batch = case
    (weight,) = cispo_forward(logp, batch)[1]
    gradient = cispo_backward(1.0, cispo_forward(logp, batch)[1])
    check_gradients(lambda: -float((weight * logp).sum()), {"logp": logp}, {"logp": gradient})


def test_the_advantages_of_a_group_sum_to_zero_and_have_spread_one(rng):
    advantage = group_advantages(rng.standard_normal((5, 7)))
    assert np.abs(advantage.sum(axis=1)).max() < 1e-13
    np.testing.assert_allclose(advantage.std(axis=1), 1, rtol=1e-12)
    assert group_advantages(np.array([[1.0, 0, 0, 1]])).tolist() == [[1, -1, -1, 1]]  # V3 Eq. (28)


def test_advantages_do_not_look_over_the_fence_of_their_group(rng):
    reward = rng.standard_normal((3, 5))
    other = reward.copy()
    other[1:] += 10 * rng.standard_normal((2, 5))
    for judge in (group_advantages, centered_advantages):
        assert (judge(reward)[0] == judge(other)[0]).all()


def test_a_group_of_equal_rewards_teaches_nothing_and_is_no_division_by_zero():
    reward = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert not group_advantages(reward)[:2].any()
    assert informative_groups(reward).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, 1.2, 0.0),  # good and already likelier: no more
        (0.5, 1.0, 0.5, 1.0),  # good and less likely: all the way back
        (1.5, -1.0, -1.5, -1.0),  # bad and likelier: all the way back
        (0.5, -1.0, -0.8, 0.0),  # bad and already less likely: no more
        (1.1, 1.0, 1.1, 1.0),
        (0.9, -1.0, -0.9, -1.0),
    ],
)
def test_the_clip_is_active_on_one_side_only(ratio, advantage, value, slope):
    got, cache = clipped_forward(np.array(ratio), np.array(advantage))
    assert got == pytest.approx(value)
    assert clipped_backward(np.array(1.0), cache) == slope
    assert got == pytest.approx(min(ratio * advantage, float(np.clip(ratio, 0.8, 1.2)) * advantage))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "report", "cispo"])
def test_on_policy_every_loss_is_reinforce_with_its_own_weight_for_a_token(name, case):
    _, batch = case
    batch = batch._replace(reference_BS=batch.old_BS)  # at the reference the divergence has no slope
    forward, backward = {**PAIRS, "cispo": (cispo_forward, cispo_backward)}[name]
    got = backward(1.0, forward(batch.old_BS.copy(), batch)[1])
    plain = reinforce_backward(1.0, reinforce_forward(batch.old_BS, batch.advantage_B, batch.written_BS)[1])
    length = batch.written_BS.sum(axis=1, keepdims=True)
    share = {"grpo": 1 / length, "gspo": 1 / length, "dr_grpo": 1 / 11, "report": 1.0}
    np.testing.assert_allclose(got, plain * share.get(name, 7 / length.sum()), rtol=1e-12, atol=1e-17)


def test_tokens_that_were_not_written_get_no_gradient(case):
    logp, batch = case
    for forward, backward in [*PAIRS.values(), (cispo_forward, cispo_backward)]:
        assert not backward(1.0, forward(logp, batch)[1])[~batch.written_BS].any()


def test_a_clipped_token_is_silent_in_grpo_and_speaks_in_cispo():
    old, written = np.full((1, 2), -1.0), np.ones((1, 2), dtype=bool)
    logp, batch = old + np.log([[2.0, 1.0]]), Batch(old, written, np.array([1.0]))
    silent = grpo_backward(1.0, grpo_forward(logp, batch)[1])
    assert silent[0, 0] == 0
    assert cispo_backward(1.0, cispo_forward(logp, batch)[1])[0, 0] == pytest.approx(-1.28 / 2)


def test_the_upper_edge_of_dapo_is_further_away():
    old, written = np.full((1, 1), -1.0), np.ones((1, 1), dtype=bool)
    batch = Batch(old, written, np.array([1.0]))
    logp = old + np.log(1.25)
    assert grpo_backward(1.0, grpo_forward(logp, batch)[1]) == 0
    assert token_loss_backward(1.0, dapo_forward(logp, batch)[1]) == pytest.approx(-1.25)


def test_a_long_wrong_answer_pays_less_for_each_token_in_grpo_and_the_same_in_dr_grpo():
    written = np.arange(4) < np.array([[4], [1]])
    old = np.full((2, 4), -1.0)
    batch = Batch(old, written, np.array([-1.0, -1.0]))
    long, short = token_loss_backward(1.0, grpo_forward(old, batch)[1])[:, 0]
    assert long == pytest.approx(short / 4)
    long, short = token_loss_backward(1.0, dr_grpo_forward(old, batch, max_length=4)[1])[:, 0]
    assert long == short


def test_the_estimate_of_the_divergence_is_never_negative_and_right_on_average(rng):
    logp, reference = log_softmax(rng.standard_normal(7)), log_softmax(rng.standard_normal(7))
    token = rng.choice(7, 100_000, p=np.exp(logp))
    kl, _ = kl_estimate_forward(logp[token], reference[token])
    exact = float((np.exp(logp) * (logp - reference)).sum())
    assert kl.min() >= 0  # V3 Eq. (27)
    assert abs(kl.mean() - exact) < 4 * kl.std() / np.sqrt(len(kl))
    assert exact == pytest.approx(float(np.exp(logp) @ kl_estimate_forward(logp, reference)[0]), rel=1e-12)


def test_the_slopes_of_both_estimates_agree_with_central_differences(rng, check_gradients):
    logp, old, reference = -rng.random(5), -rng.random(5), -rng.random(5)
    check_gradients(
        lambda: float(kl_estimate_forward(logp, reference)[0].sum()),
        {"logp": logp},
        {"logp": kl_estimate_backward(np.ones(5), kl_estimate_forward(logp, reference)[1])},
    )
    check_gradients(
        lambda: float(corrected_kl_forward(logp, old, reference)[0].sum()),
        {"logp": logp},
        {"logp": corrected_kl_backward(np.ones(5), corrected_kl_forward(logp, old, reference)[1])},
    )


def test_eq_27_pulls_along_the_other_divergence_and_the_corrected_one_along_its_own(rng):
    logits, reference = rng.standard_normal(7), log_softmax(rng.standard_normal(7))
    logp = log_softmax(logits)
    prob, score = np.exp(logp), np.eye(7) - np.exp(logp)  # score[a] = dlog pi_a / dz
    mean = lambda slope: (prob * slope) @ score  # noqa: E731  the expectation over draws from pi, written out
    plain = mean(kl_estimate_backward(np.ones(7), kl_estimate_forward(logp, reference)[1]))
    np.testing.assert_allclose(plain, prob - np.exp(reference), atol=1e-14)  # d KL(ref || pi) / dz
    fixed = mean(corrected_kl_backward(np.ones(7), corrected_kl_forward(logp, logp, reference)[1]))
    excess = logp - reference
    np.testing.assert_allclose(fixed, prob * (excess - prob @ excess), atol=1e-14)  # d KL(pi || ref) / dz


def test_what_cannot_be_right_is_refused(case):
    logp, batch = case
    with pytest.raises(ValueError, match="needs reference_BS"):
        grpo_forward(logp, batch._replace(reference_BS=None), beta=0.1)
    with pytest.raises(ValueError, match="needs reference_BS"):
        report_grpo_forward(logp, batch._replace(reference_BS=None), beta=0.1)
    empty = batch._replace(written_BS=batch.written_BS & (np.arange(7) != 3)[:, None])
    for forward in (grpo_forward, dapo_forward, gspo_forward, cispo_forward):
        with pytest.raises(ValueError, match="answer 3 has no written token"):
            forward(logp, empty)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_from_right_and_wrong_alone(loss):
    rng = np.random.default_rng(1)
    weights, (train, held_out) = warm_start(rng), sorting_problems()
    before, adam = measure_accuracy(weights, held_out), Adam(weights, 5e-3)
    for _ in range(45):
        weights, _ = grpo_step(weights, adam, train[rng.integers(0, len(train), 16)], rng, loss, n_answers=8)
    assert measure_accuracy(weights, held_out) > before + 0.08


def test_several_updates_on_one_batch_move_away_from_the_policy_that_wrote(rng):
    weights, (train, _) = warm_start(rng, 20), sorting_problems()
    one, four = (grpo_step(weights, Adam(weights), train[:5], np.random.default_rng(0), n_updates=n)[0] for n in (1, 4))
    assert np.abs(four.head_VF - weights.head_VF).max() > 1.5 * np.abs(one.head_VF - weights.head_VF).max()
