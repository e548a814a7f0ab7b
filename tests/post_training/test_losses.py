"""Every loss: its gradient by central differences, its micro-batches, its clip, and what no gradient passes through."""

from functools import partial

import pytest
import torch

from deepseek_v3.post_training import losses
from deepseek_v3.post_training.losses import Answers

B, S = 7, 5
LOSSES = {
    "grpo": losses.grpo_loss,
    "grpo with a divergence": partial(losses.grpo_loss, beta=0.3),
    "grpo with the printed divergence": partial(losses.grpo_loss, beta=0.3, divergence=losses.kl_estimate),
    "dr_grpo": partial(losses.dr_grpo_loss, max_length=11, beta=0.1),
    "dapo": partial(losses.dapo_loss, beta=0.1),
    "gspo": partial(losses.gspo_loss, low=0.05, high=0.07, beta=0.1),
    "report": partial(losses.report_grpo_loss, clip=0.4, beta=0.1),
}


def draw(seed: int = 0) -> tuple[torch.Tensor, Answers]:
    """Answers of different lengths; ratios far enough from every edge that a difference does not cross one."""
    generator = torch.Generator().manual_seed(seed)
    logp, old, reference = (-torch.rand(B, S, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    written = torch.arange(S) < torch.tensor([1, 2, 3, 4, 5, 5, 3])[:, None]
    advantage = torch.randn(B, generator=generator, dtype=torch.float64)
    weight = torch.rand(B, S, generator=generator, dtype=torch.float64)
    return logp * written, Answers(written, advantage, old * written, reference * written, weight)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_central_differences(name):
    logp, answers = draw()
    logp.requires_grad_(True)
    loss = LOSSES[name](logp, answers)
    (slope,) = torch.autograd.grad(loss, logp)
    h = 1e-6
    with torch.no_grad():
        for b in range(B):
            for s in range(S):
                step = torch.zeros_like(logp)
                step[b, s] = h
                rise = (LOSSES[name](logp + step, answers) - LOSSES[name](logp - step, answers)) / (2 * h)
                assert abs(rise - slope[b, s]) < 1e-7, (b, s)
    assert (slope[~answers.written_BS] == 0).all()


def test_the_weight_of_cispo_is_a_constant():
    """Its value has no meaning; the slope is that of the weights held where they were."""
    logp, answers = draw()
    logp.requires_grad_(True)
    (slope,) = torch.autograd.grad(losses.cispo_loss(logp, answers), logp)
    weight = (logp - answers.old_BS).detach().exp().clamp(0, 1.28) * answers.advantage_B[:, None]
    held = -(answers.written_BS * weight * answers.importance_BS) / answers.written_BS.sum()
    assert torch.allclose(slope, held, atol=1e-14)


@pytest.mark.parametrize("name", [*LOSSES, "cispo"])
def test_micro_batches_with_the_divisors_of_the_step_add_up(name):
    loss = LOSSES.get(name, losses.cispo_loss)
    logp, answers = draw(1)
    whole = loss(logp, answers)
    fields = ("written_BS", "advantage_B", "old_BS", "reference_BS", "importance_BS")
    total = 0.0
    for rows in (slice(0, 2), slice(2, 3), slice(3, 7)):
        piece = {field: getattr(answers, field)[rows] for field in fields}
        total += float(loss(logp[rows], Answers(**piece, n_answers=B, n_tokens=int(answers.written_BS.sum()))))
    assert total == pytest.approx(float(whole), abs=1e-13)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_the_clip_takes_the_gradient_on_one_side_only(name):
    far = torch.tensor([[0.0], [0.0], [-2.0], [-2.0]], dtype=torch.float64)  # log pi; pi_old is 1 / e
    written = torch.ones(4, 1, dtype=torch.bool)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    answers = Answers(written, advantage, torch.full_like(far, -1.0))
    far.requires_grad_(True)
    (slope,) = torch.autograd.grad(getattr(losses, f"{name}_loss")(far, answers), far)
    assert (slope.flatten() != 0).tolist() == [False, True, True, False]
    cut = losses.beyond_the_edge((far.detach() + 1).exp(), advantage[:, None], 0.2, 0.2)
    assert cut.flatten().tolist() == [True, False, False, True]


def test_on_the_weights_that_wrote_every_written_token_gets_its_answers_advantage():
    logp, answers = draw()
    logp = logp.detach().requires_grad_(True)
    now = Answers(answers.written_BS, answers.advantage_B, logp.detach())
    (slope,) = torch.autograd.grad(losses.dapo_loss(logp, now), logp)
    assert torch.allclose(slope, -answers.advantage_B[:, None] * answers.written_BS / answers.written_BS.sum())


def test_advantages_have_mean_0_spread_1_and_are_0_where_all_answers_are_alike():
    reward = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 3]])
    advantage = losses.group_advantages(reward)
    assert torch.allclose(advantage.mean(1), torch.zeros(3), atol=1e-7)
    assert torch.allclose(advantage.std(1, correction=0), torch.tensor([1.0, 0, 1]), atol=1e-6)
    assert losses.informative_groups(reward).tolist() == [True, False, True]
    assert losses.centered_advantages(reward)[2].tolist() == [-0.75, -0.75, -0.75, 2.25]


def test_the_corrected_divergence_has_the_gradient_of_the_divergence_that_was_meant():
    """Written out over all tokens of a small vocabulary: the expectation of its slope is that of KL(pi || pi_ref)."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(11, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(11, generator=generator, dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (meant,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits, retain_graph=True)
    answers = Answers(torch.ones(1, 11, dtype=torch.bool), torch.zeros(1), logp.detach()[None], reference[None])
    for divergence, right in ((losses.corrected_kl, True), (losses.kl_estimate, False)):
        drawn = (logp.detach().exp() * divergence(logp[None], answers)[0]).sum()
        (slope,) = torch.autograd.grad(drawn, logits, retain_graph=True)
        assert torch.allclose(slope, meant, atol=1e-12) == right


def test_importance_weights_are_cut_and_carry_no_gradient():
    trainer = torch.tensor([-1.0, -1.0], requires_grad=True)
    weight = losses.truncated_importance(trainer, torch.tensor([-1.5, -9.0]), most=2.0)
    assert weight.tolist() == pytest.approx([1.6487, 2.0], abs=1e-4)
    assert not weight.requires_grad


def test_an_answer_without_a_token_and_a_divergence_without_a_reference_are_refused():
    logp, answers = draw()
    none = Answers(torch.zeros(B, S, dtype=torch.bool), answers.advantage_B, answers.old_BS)
    with pytest.raises(ValueError, match="answer 0 has no written token"):
        losses.grpo_loss(logp, none)
    with pytest.raises(ValueError, match="reference"):
        losses.grpo_loss(logp, Answers(answers.written_BS, answers.advantage_B, answers.old_BS), beta=0.1)
