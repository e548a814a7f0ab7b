"""The labels of every depth, masks at document ends, the division by T, and the canaries of multi-token prediction."""

import pytest
import torch
from torch.nn import functional as F

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.training.loss import IGNORED, make_labels, pretraining_loss

DOCUMENTS = torch.tensor([[5, 5, 5, 5, 8, 8, 8, 9, 9]])


def loss_of(model, tokens: torch.Tensor, documents: torch.Tensor, **settings):
    hidden = model.hidden_states(tokens[:, :-1])
    ahead = model.mtp_hidden_states(tokens[:, :-1], hidden)
    rows = int((make_labels(tokens, documents, 0) != IGNORED).sum())
    settings = {"mtp_weight": 0.3, "step_rows": rows, **settings}
    return pretraining_loss(hidden, ahead, model.lm_head, tokens, documents, **settings)


def test_row_i_of_depth_k_is_scored_on_token_i_plus_1_plus_k():  # V3 Eq. (24)
    tokens = torch.arange(100, 108)[None]
    one = torch.zeros_like(tokens)
    assert make_labels(tokens, one, 0).tolist() == [[101, 102, 103, 104, 105, 106, 107]]
    assert make_labels(tokens, one, 1).tolist() == [[102, 103, 104, 105, 106, 107, IGNORED]]
    assert make_labels(tokens, one, 2).tolist() == [[103, 104, 105, 106, 107, IGNORED, IGNORED]]


def test_no_row_is_scored_on_a_token_of_another_document():
    tokens = torch.arange(9)[None]
    for depth in range(4):
        labels = make_labels(tokens, DOCUMENTS, depth)[0].tolist()
        for i, label in enumerate(labels):
            target = i + 1 + depth
            same = target < 9 and DOCUMENTS[0, i] == DOCUMENTS[0, target]
            assert label == (target if same else IGNORED)


def test_a_window_shorter_than_the_depth_scores_nothing():
    assert make_labels(torch.arange(3)[None], torch.zeros(1, 3), 4).tolist() == [[IGNORED, IGNORED]]


def test_every_depth_is_divided_by_the_main_rows_and_averaged_over_depths(tiny_model):  # V3 Eq. (25)
    model, depth = tiny_model(), 2
    tokens = torch.randint(0, 31, (3, 9))
    documents = DOCUMENTS.expand(3, -1)
    logits, mtp_logits = model(tokens[:, :-1], mtp=True)
    wanted, rows = torch.zeros(()), 0
    for b in range(3):
        for k, table in enumerate([logits, *mtp_logits]):
            for i in range(8):
                target = i + 1 + k
                if target < 9 and documents[b, i] == documents[b, target]:
                    nats = -F.log_softmax(table[b, i], -1)[tokens[b, target]]
                    wanted = wanted + (nats if k == 0 else 0.3 / depth * nats)
                    rows += k == 0
    parts = loss_of(model, tokens, documents)
    assert parts.main_rows == rows == 3 * 6
    assert parts.mtp_rows == [9, 3]
    assert torch.allclose(parts.total, wanted / rows, rtol=1e-5)  # FP32 sums


def test_the_balance_loss_enters_with_its_weight_and_has_a_gradient(tiny_model):
    model = tiny_model()
    tokens = torch.randint(0, 31, (3, 9))
    record = RoutingRecord()
    model(tokens[:, :-1], mtp=True, record=record)
    assert len(record.balance_losses) == 3
    one = loss_of(model, tokens, torch.zeros_like(tokens))
    parts = loss_of(
        model,
        tokens,
        torch.zeros_like(tokens),
        balance_losses=record.balance_losses.values(),
        balance_alpha=0.5,
        balance_share=0.25,
    )
    assert parts.balance == pytest.approx(0.125 * sum(float(loss.detach()) for loss in record.balance_losses.values()))
    assert parts.total.item() == pytest.approx(one.total.item() + parts.balance, rel=1e-6)
    gate = model.layers[1].mlp.gate.weight
    with_balance, without = (torch.autograd.grad(part.total, gate)[0] for part in (parts, one))
    assert not torch.allclose(with_balance, without, rtol=1e-3, atol=1e-6)


def test_every_mtp_parameter_learns_and_embedding_and_head_learn_from_it(tiny_model):
    model = tiny_model()
    tokens = torch.randint(0, 31, (7, 9))
    loss_of(model, tokens, torch.zeros_like(tokens)).total.backward()
    for name, parameter in model.mtp.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_module_that_could_see_its_target_would_copy_it(tiny_model):
    """The copy canary: train on pure noise; the MTP loss cannot fall below chance unless the target leaks in."""
    model = tiny_model(depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    nats = []
    for step in range(60):
        tokens = torch.randint(0, 31, (16, 9), generator=torch.Generator().manual_seed(step))
        parts = loss_of(model, tokens, torch.zeros_like(tokens), mtp_weight=1.0)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        nats.append(float(parts.mtp_nats[0]) / parts.mtp_rows[0])
    assert sum(nats[-10:]) / 10 > 3.3  # ln 31 = 3.43; a leak goes towards 0
