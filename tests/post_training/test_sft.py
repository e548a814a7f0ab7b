"""Fine-tuning: the mask belongs to what is predicted, packing and padding change nothing, prompts teach nothing."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from deepseek_v3.data.documents import DataError
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.post_training.dialogues import Dialogue
from deepseek_v3.post_training.sft import (
    DialogueStream,
    FineTuning,
    FreshDialogues,
    answer_labels,
    plan_rows,
    stack_rows,
)
from deepseek_v3.training.loss import IGNORED
from deepseek_v3.training.schedule import Settings

PAD = 2


def some_dialogues(count: int = 11, seed: int = 0) -> list[Dialogue]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        size = 5 + int(torch.randint(0, 9, (), generator=generator))
        tokens = torch.randint(10, 271, (size,), generator=generator).tolist()
        first = 2 + i % 3
        found.append(Dialogue(tokens, [first <= at < size for at in range(size)]))
    return found


def settings(step_rows: int, mtp_weight: float = 0.3) -> Settings:
    return Settings(1e-3, 4, mtp_weight, 0.0, step_rows)


def loss_of(model, batch, step_rows, **more):
    record = RoutingRecord()
    parts = FineTuning(**more)(model, batch, record, settings(step_rows))
    return parts, record


def rows_of(batch) -> int:
    return int((answer_labels(batch) != IGNORED).sum())


def test_the_row_before_an_answer_is_the_first_that_learns_and_its_last_token_is_never_read_for_itself():
    one = Dialogue([10, 11, 12, 13, 14], [False, False, True, True, False])
    batch = stack_rows([[one]], PAD)
    assert answer_labels(batch).tolist() == [[IGNORED, 12, 13, IGNORED]]
    assert answer_labels(batch, 1).tolist() == [[12, 13, IGNORED, IGNORED]]


def test_no_row_is_scored_on_the_next_dialogue():
    a, b = Dialogue([10, 11], [False, True]), Dialogue([20, 21, 22], [True, True, True])
    assert answer_labels(stack_rows([[a, b]], PAD)).tolist() == [[11, IGNORED, 21, 22]]


def test_rows_are_planned_longest_first_and_nothing_is_cut():
    rows = plan_rows([3, 9, 4, 6, 1, 10], 10)
    assert sorted(i for row in rows for i in row) == list(range(6))
    assert rows == [[5], [1, 4], [3, 2], [0]]
    with pytest.raises(ValueError, match="dialogue 1 has 9 tokens"):
        plan_rows([3, 9], 8)


def test_packing_and_padding_change_neither_loss_nor_gradient(form, model):
    """Eleven dialogues one a row, packed, and packed with padding behind: FP32 sums in another order."""
    dialogues = some_dialogues()
    apart = stack_rows([[d] for d in dialogues], PAD)
    packed = stack_rows([[dialogues[i] for i in row] for row in plan_rows([len(d.tokens) for d in dialogues], 40)], PAD)
    padded = stack_rows([[*dialogues[:6]], [*dialogues[6:]]], PAD)
    assert len(packed) < len(dialogues)
    found = {}
    for name, batch in (("apart", apart), ("packed", packed), ("padded", padded)):
        model.zero_grad()
        parts, record = loss_of(model, batch, rows_of(batch))
        parts.total.backward()
        loads = {layer: count.tolist() for layer, count in record.counts.items()}
        found[name] = (
            float(parts.total.detach()),
            parts.mtp_rows,
            loads,
            {n: p.grad.clone() for n, p in model.named_parameters()},
        )
    for name in ("packed", "padded"):
        assert found[name][0] == pytest.approx(found["apart"][0], abs=1e-6)
        assert found[name][1] == found["apart"][1]
        assert found[name][2] == found["apart"][2]
        for parameter, gradient in found["apart"][3].items():
            assert (found[name][3][parameter] - gradient).abs().max() < 1e-6, parameter


def test_without_the_sample_mask_dialogues_of_a_row_do_see_each_other(model):
    dialogues = some_dialogues(4)
    packed = stack_rows([dialogues], PAD)
    with torch.no_grad():
        with_mask, without = (float(loss_of(model, packed, 9, sample_mask=m)[0].total.detach()) for m in (True, False))
        alone = sum(float(loss_of(model, stack_rows([[d]], PAD), 9)[0].total.detach()) for d in dialogues)
    assert with_mask == pytest.approx(alone, abs=1e-5)
    assert abs(without - alone) > 1e-3


def test_the_loss_is_cross_entropy_on_answers_alone(model):
    dialogue = some_dialogues(1)[0]
    batch = stack_rows([[dialogue]], PAD)
    with torch.no_grad():
        logits = model(batch.tokens[:, :-1])
        parts = FineTuning()(model, batch, RoutingRecord(), settings(1, mtp_weight=0.0))
    wanted = sum(
        float(F.cross_entropy(logits[0, i][None], batch.tokens[:, i + 1]))
        for i in range(len(dialogue.tokens) - 1)
        if dialogue.answers[i + 1]
    )
    assert float(parts.total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert parts.main_rows == sum(dialogue.answers[1:])


def test_no_gradient_comes_from_the_tokens_of_prompts(model):
    """The last prompt token's own logit is asked for; no logit before it is."""
    dialogue = Dialogue([10, 11, 12, 13, 14, 15], [False] * 4 + [True] * 2)
    batch = stack_rows([[dialogue]], PAD)
    kept = []

    def watch(_, __, out):
        out.register_hook(kept.append)

    model.norm.register_forward_hook(watch)
    FineTuning()(model, batch, RoutingRecord(), settings(2, mtp_weight=0.0)).total.backward()
    (slope,) = kept
    assert (slope[0, :3] == 0).all()
    assert (slope[0, 3:].abs().sum(1) > 0).all()


def test_micro_batches_add_up(model):
    batch = stack_rows([[d] for d in some_dialogues()], PAD)
    whole = float(loss_of(model, batch, rows_of(batch))[0].total.detach())
    parts = [
        float(loss_of(model, batch.part(a, b), rows_of(batch))[0].total.detach()) for a, b in ((0, 2), (2, 7), (7, 11))
    ]
    assert sum(parts) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("pack", [True, False])
def test_a_stream_gives_every_dialogue_once_an_epoch_and_is_taken_up_where_it_stood(pack):
    dialogues = some_dialogues(23)
    stream = DialogueStream(dialogues, 30, PAD, seed=5, pack=pack)
    seen: list[tuple[int, ...]] = []
    while stream.epoch == 0 and stream.row < len(stream._rows):
        batch = stream.next_batch(1)
        documents = batch.documents[0]
        seen += [tuple(batch.tokens[0][documents == n].tolist()) for n in range(int(documents.max()) + 1)]
    assert sorted(seen) == sorted(tuple(d.tokens) for d in dialogues)
    stream.next_batch(3)
    state, wanted = stream.state_dict(), stream.next_batch(4)
    again = DialogueStream(dialogues, 30, PAD, seed=5, pack=pack)
    again.load_state_dict(state)
    assert torch.equal(again.next_batch(4).tokens, wanted.tokens)
    other = DialogueStream(dialogues[1:], 30, PAD, seed=5, pack=pack)
    with pytest.raises(DataError, match="changed since the checkpoint"):
        other.load_state_dict(state)


def test_what_is_drawn_anew_comes_once_and_a_resumed_stream_draws_the_same():
    def begin(name: str = "sums") -> FreshDialogues:
        return FreshDialogues(lambda epoch: some_dialogues(11, epoch), name, 40, PAD, seed=5, pack=True)

    stream, seen, states = begin(), [], []
    for _ in range(9):
        states.append(stream.state_dict())
        seen.append(stream.next_batch(2).tokens.tolist())
    drawn = Counter(token for batch in seen for row in batch for token in row if token != PAD)
    whole = Counter(t for epoch in range(stream.epoch) for d in some_dialogues(11, epoch) for t in d.tokens)
    assert stream.epoch >= 2
    assert not whole - drawn
    for at in (8, 3, 0):  # forwards, back, and to the very beginning
        stream.load_state_dict(states[at])
        assert stream.next_batch(2).tokens.tolist() == seen[at]
    with pytest.raises(DataError, match="changed since the checkpoint"):
        begin("letters").load_state_dict(states[3])
