"""Questions that are read once for all their answers: the same numbers, gradients and choices as a row an answer."""

import pytest
import torch

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.post_training import shared_prompts
from deepseek_v3.post_training.policy import real_rows, replay_record, score_written, stack_answers
from deepseek_v3.post_training.rollout import Writer
from deepseek_v3.post_training.sft import count_real_tokens
from deepseek_v3.post_training.shared_prompts import fold_answers

PROMPTS = [[0, 6, 50, 51, 9], [0, 6, 77, 9], [0, 6, 60, 61, 62, 63, 64, 65, 9]]


@pytest.fixture
def batch(model):
    """Answers of all lengths, one of a single token; those of a question are not side by side."""
    writer = Writer(model, stop_tokens=range(10, 90), max_new_tokens=7, choices=True)
    rollouts = writer.write(PROMPTS, 5, temperature=1.0, seed=29)
    assert len({len(r.tokens) for r in rollouts}) > 3
    assert min(len(r.tokens) for r in rollouts) == 1
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    return stack_answers(rollouts, torch.zeros(15), pad=2).pick(order)


def learn(model, batch, *, replay: bool):
    """Log-probabilities, entropies, loads, choices of real rows, and the gradient of a sum with weights."""
    model.zero_grad()
    record = replay_record(model, batch, replay=replay, record=RoutingRecord())
    logp_BS, entropy_M = score_written(model, batch, record, 0.8)
    count_real_tokens(record, real_rows(batch), model)
    weight_BS = torch.linspace(-1, 2, logp_BS.numel()).view_as(logp_BS)
    (logp_BS * weight_BS).sum().backward()
    real_N = real_rows(batch).flatten()
    choices = {layer: chosen[real_N] for layer, chosen in record.choices.items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logp_BS.detach(), entropy_M, {k: v.tolist() for k, v in record.counts.items()}, choices, gradients


@pytest.mark.parametrize("replay", [True, False])
def test_a_question_that_is_read_once_changes_neither_number_nor_gradient(form, model, batch, monkeypatch, replay):
    """FP32 sums in another order: 1e-5 of the largest."""
    folded = fold_answers(batch.tokens, batch.written)
    assert folded is not None
    assert folded.tokens_PF.numel() < 0.6 * batch.written.numel()
    together = learn(model, batch, replay=replay)
    monkeypatch.setattr(shared_prompts, "WIDEST", 0)
    assert fold_answers(batch.tokens, batch.written) is None
    apart = learn(model, batch, replay=replay)
    for a, b in zip(together[:2], apart[:2]):
        assert (a - b).abs().max() < 1e-5
    assert together[2] == apart[2]
    assert all(
        torch.equal(a.sort(-1).values, b.sort(-1).values) for a, b in zip(together[3].values(), apart[3].values())
    )
    assert together[4].keys() == apart[4].keys()
    for name, gradient in apart[4].items():
        assert (together[4][name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_every_row_of_the_batch_is_found_again_with_its_token_and_position(batch):
    folded = fold_answers(batch.tokens, batch.written)
    rows = batch.written.shape[1]
    for at in real_rows(batch).flatten().nonzero().flatten().tolist():
        place = int(folded.place_N[at])
        assert folded.tokens_PF.flatten()[place] == batch.tokens[:, :-1].flatten()[at]
        assert folded.within.position_BS.flatten()[place] == at % rows
        source = int(folded.source[place])
        assert source % rows == at % rows
        assert batch.tokens[:, :-1].flatten()[source] == batch.tokens[:, :-1].flatten()[at]


def test_answers_that_share_nothing_have_rows_of_their_own(model):
    writer = Writer(model, stop_tokens=(), max_new_tokens=5, choices=True)
    batch = stack_answers(writer.write(PROMPTS, 1, temperature=1.0, seed=2), torch.zeros(3), pad=2)
    folded = fold_answers(batch.tokens, batch.written)
    assert folded is None or folded.tokens_PF.numel() < batch.written.numel()
