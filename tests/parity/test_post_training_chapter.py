"""Chapter 07 and the package: every loss and gradient, divergences, targets, packing, replay, to 1e-10 in FP64."""

import distillation
import grpo as chapter
import numpy as np
import pytest
import router_replay
import supervised_fine_tuning
import torch

from deepseek_v3.post_training import distill, losses, sft
from deepseek_v3.post_training.dialogues import Dialogue
from tests.tiny import tiny_config

B, S, CLOSE = 6, 4, 1e-10


def draw(rng: np.random.Generator):
    """The same answers for both halves."""
    written = np.arange(S) < np.array([1, 2, 3, 4, 4, 2])[:, None]
    logp, old, reference = (-2 * rng.random((B, S)) * written for _ in range(3))
    advantage = rng.standard_normal(B)
    ours = losses.Answers(*(torch.tensor(x) for x in (written, advantage, old, reference)))
    return logp, chapter.Batch(old, written, advantage, reference), ours


PAIRS = {
    "grpo": ({"clip": 0.2}, losses.grpo_loss),
    "grpo, beta": ({"clip": 0.2, "beta": 0.3}, losses.grpo_loss),
    "dr_grpo": ({"max_length": 9, "clip": 0.2, "beta": 0.2}, losses.dr_grpo_loss),
    "dapo": ({"low": 0.2, "high": 0.28}, losses.dapo_loss),
    "gspo": ({"low": 0.05, "high": 0.07}, losses.gspo_loss),
    "cispo": ({"low": 1.0, "high": 0.28}, losses.cispo_loss),
    "report_grpo": ({"clip": 0.2, "beta": 0.3}, losses.report_grpo_loss),
}


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient_are_the_chapters(rng, name):
    logp, batch, answers = draw(rng)
    settings, ours = PAIRS[name]
    plain = name.split(",")[0]
    wanted, cache = getattr(chapter, f"{plain}_forward")(logp, batch, **settings)
    slope = getattr(chapter, f"{plain}_backward")(1.0, cache)
    at = torch.tensor(logp, requires_grad=True)
    printed = {"divergence": losses.kl_estimate} if "beta" in settings else {}
    found = ours(at, answers, **settings, **printed)
    found.backward()
    assert float(found.detach()) == pytest.approx(wanted, abs=CLOSE)
    assert np.abs(at.grad.numpy() - slope).max() < CLOSE


def test_divergences_and_advantages_are_the_chapters(rng):
    logp, batch, answers = draw(rng)
    for ours, theirs in (
        (losses.kl_estimate(torch.tensor(logp), answers), chapter.kl_estimate_forward(logp, batch.reference_BS)[0]),
        (
            losses.corrected_kl(torch.tensor(logp), answers),
            chapter.corrected_kl_forward(logp, batch.old_BS, batch.reference_BS)[0],
        ),
    ):
        assert np.abs(ours.numpy() - theirs).max() < CLOSE
    reward = rng.integers(0, 2, (5, 4)).astype(float)
    reward[0] = 1
    for name in ("group_advantages", "centered_advantages", "informative_groups"):
        ours = getattr(losses, name)(torch.tensor(reward)).double().numpy()
        assert np.abs(ours - getattr(chapter, name)(reward)).max() < CLOSE
    ratio = rng.random(9) * 4
    assert (
        np.abs(losses.truncated_weights(torch.tensor(ratio)).numpy() - router_replay.truncated_weights(ratio)).max()
        == 0
    )


def test_targets_and_packing_are_the_chapters(rng):
    sizes = [3, 7, 5, 2, 6, 4]
    texts = [rng.integers(3, 13, n) for n in sizes]
    answers = [np.arange(n) >= n // 2 for n in sizes]
    theirs = supervised_fine_tuning.pack_dialogues(
        [supervised_fine_tuning.Dialogue(t, a) for t, a in zip(texts, answers)], 10
    )
    ours_of = [Dialogue(t.tolist(), a.tolist()) for t, a in zip(texts, answers)]
    rows = sft.plan_rows(sizes, 10)
    ours = sft.stack_rows([[ours_of[i] for i in row] for row in rows], supervised_fine_tuning.PAD)
    width = ours.tokens.shape[1]
    assert (ours.tokens.numpy() == theirs.token_BT[:, :width]).all()
    assert (ours.documents.numpy() == theirs.document_BT[:, :width]).all()
    wanted = supervised_fine_tuning.answer_targets(theirs.token_BT, theirs.answer_BT)[:, : width - 1]
    wanted[theirs.document_BT[:, 1:width] != theirs.document_BT[:, : width - 1]] = supervised_fine_tuning.IGNORE
    assert (sft.answer_labels(ours).numpy() == wanted).all()
    mask = supervised_fine_tuning.attention_mask(theirs.document_BT[0][:width])
    real = theirs.document_BT[0][:width] >= 0
    from deepseek_v3.model.cache import Within

    assert (Within.documents(ours.documents).mask_ST[0, 0].numpy()[real] == mask[real]).all()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_both_divergences_of_distillation_are_the_chapters(rng, kind):
    teacher, student = rng.standard_normal((2, 3, 4, 7))
    counted = rng.random((3, 4)) < 0.6
    wanted, cache = getattr(distillation, f"{kind}_forward")(teacher, student, counted, 1.7)
    slope = getattr(distillation, f"{kind}_backward")(1.0, cache)
    at, rows = torch.tensor(student, requires_grad=True), torch.tensor(counted)
    found = distill.DIVERGENCES[kind](torch.tensor(teacher)[rows], at[rows], 1.7) / int(counted.sum())
    found.backward()
    assert float(found.detach()) == pytest.approx(wanted, abs=CLOSE)
    assert np.abs(at.grad.numpy() - slope).max() < CLOSE


def test_replayed_choices_with_gates_computed_again_are_the_chapters(rng):
    """The router alone: sigmoid, normalized over the chosen, no groups, no scale."""
    from deepseek_v3.model.router import Router

    weights = router_replay.MoeWeights.init(rng, D=6, E=5)
    x = rng.standard_normal((9, 6))
    index = rng.permuted(np.tile(np.arange(5), (9, 1)), axis=1)[:, :2]
    gates, cache = router_replay.recompute_gates_forward(weights.router_ED, x, index)
    dgate = rng.standard_normal(gates.shape)
    drouter, dx = router_replay.recompute_gates_backward(dgate, cache)
    changes = {"hidden_size": 6, "n_routed_experts": 5, "num_experts_per_tok": 2, "routed_scaling_factor": 1.0}
    router = Router(tiny_config(**changes, n_group=1, topk_group=1)).double()
    router.weight.data = torch.tensor(weights.router_ED)
    at = torch.tensor(x, requires_grad=True)
    ours, chosen, _ = router(at, torch.tensor(index))
    (ours * torch.tensor(dgate)).sum().backward()
    assert (chosen.numpy() == index).all()
    for found, wanted in ((ours.detach(), gates), (router.weight.grad, drouter), (at.grad, dx)):
        assert np.abs(found.numpy() - wanted).max() < CLOSE
