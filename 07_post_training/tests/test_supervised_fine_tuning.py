"""The mask stands on what is predicted, packing changes nothing, pieces of a batch share one divisor."""

import numpy as np
import pytest
from supervised_fine_tuning import (
    ASSISTANT,
    BOS,
    EOS,
    IGNORE,
    USER,
    Dialogue,
    Turn,
    answer_targets,
    attention_mask,
    fine_tuning_gradient,
    masked_loss_backward,
    masked_loss_forward,
    pack_dialogues,
    render_dialogue,
    sorting_dialogue,
    sorting_dialogues,
)
from token_policy import ALPHABET, PolicyWeights, encode_text, sorting_problems


@pytest.fixture
def weights(rng):
    """A policy of 5 hidden units that sees 7 tokens of width 2."""
    return PolicyWeights.init(rng, hidden=5, width=2)


def test_the_template_is_the_one_of_v3_and_answers_with_their_end_are_learned():
    turns = [Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    pieces = render_dialogue(turns)
    want = f"{BOS}S{USER}a{ASSISTANT}b{EOS}{USER}c{ASSISTANT}d{EOS}"
    assert "".join(text for text, _ in pieces) == want
    assert [text for text, learned in pieces if learned] == ["b", EOS, "d", EOS]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([Turn("user", "a")], "nothing to learn"),
        ([Turn("user", "a"), Turn("system", "b")], "turn 1 is of 'system'"),
        ([Turn("tool", "a")], "turn 0 is of 'tool'"),
    ],
)
def test_a_dialogue_that_the_template_lacks_is_refused(turns, says):
    with pytest.raises(ValueError, match=says):
        render_dialogue(turns)


def test_the_row_of_the_last_question_token_is_the_first_that_learns():
    one = sorting_dialogue("201>", "012.")
    target = answer_targets(one.token_T[None], one.answer_T[None])[0]
    assert target.tolist() == [IGNORE] * 3 + encode_text("012.")


def test_the_gradient_agrees_with_central_differences(rng, check_gradients):
    logits, target = rng.standard_normal((2, 5, 7)), rng.integers(0, 7, (2, 5))
    target[0, :3] = target[1, 4] = IGNORE
    _, cache = masked_loss_forward(logits, target)
    check_gradients(
        lambda: masked_loss_forward(logits, target)[0], {"z": logits}, {"z": masked_loss_backward(1.0, cache)}
    )


def test_torch_agrees(rng):
    torch = pytest.importorskip("torch")
    logits, target = rng.standard_normal((2, 5, 7)), rng.integers(0, 7, (2, 5))
    target[0, 2:] = IGNORE
    leaf = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(leaf.reshape(-1, 7), torch.tensor(target).reshape(-1))
    want.backward()
    loss, cache = masked_loss_forward(logits, target)
    assert loss == pytest.approx(want.item(), rel=1e-13)
    np.testing.assert_allclose(masked_loss_backward(1.0, cache), leaf.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_prompt_tokens_get_no_gradient_at_all(rng):
    one = sorting_dialogue("201>", "012.")
    target = answer_targets(one.token_T[None], one.answer_T[None])
    logits = rng.standard_normal((1, 7, len(ALPHABET)))
    dlogits = masked_loss_backward(1.0, masked_loss_forward(logits, target)[1])
    assert not dlogits[0, :3].any()
    assert dlogits[0, 3:].any(axis=-1).all()


def test_packing_keeps_every_dialogue_whole_and_counts_positions_anew():
    sizes = (5, 3, 7, 2, 11, 3)
    dialogues = [Dialogue(np.full(n, 3 + i), np.arange(n) > 0) for i, n in enumerate(sizes)]
    packed = pack_dialogues(dialogues, 13)
    assert len(packed.token_BT) == 3  # 11 + 2, 7 + 5, 3 + 3
    for i, n in enumerate(sizes):
        row, place = np.nonzero(packed.token_BT == 3 + i)
        assert len(set(row)) == 1
        assert packed.position_BT[row, place].tolist() == list(range(n))
        assert len(set(packed.document_BT[row, place])) == 1
    assert (packed.document_BT == -1).sum() == 3 * 13 - sum(sizes)


def test_packing_changes_neither_loss_nor_gradient(weights):
    dialogues = sorting_dialogues(sorting_problems()[0][:11])
    (loss, gradient), (apart, gradient_apart) = (
        fine_tuning_gradient(weights, pack_dialogues(dialogues, n)) for n in (29, 8)
    )
    assert loss == pytest.approx(apart, rel=1e-13)
    for a, b in zip(gradient, gradient_apart):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-15)


def test_a_row_attends_to_its_own_dialogue_and_never_ahead():
    mask = attention_mask(np.array([0, 0, 1, 1, -1]))
    assert mask.astype(int).tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0] * 5]


def test_pieces_of_a_batch_with_the_divisor_of_the_whole_add_up_to_it(weights):
    long = [Dialogue(np.array(encode_text(f"{i}>" + "0123." * 2)), np.arange(12) >= 2) for i in range(3)]
    short = sorting_dialogues(sorting_problems()[0][:5])
    whole = pack_dialogues(long + short, 12)
    n = int(whole.answer_BT.sum())
    loss, gradient = fine_tuning_gradient(weights, whole)
    parts = [fine_tuning_gradient(weights, pack_dialogues(d, 12), divisor=n) for d in (long, short)]
    assert sum(p[0] for p in parts) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(sum(p[1].head_VF for p in parts), gradient.head_VF, rtol=1e-11, atol=1e-15)
    own = [fine_tuning_gradient(weights, pack_dialogues(d, 12))[0] for d in (long, short)]
    assert abs(np.mean(own) - loss) > 1e-3  # a mean of means is another loss


def test_what_cannot_be_right_is_refused(rng):
    with pytest.raises(ValueError, match="dialogue 0 has 8 tokens, a row only 7"):
        pack_dialogues([sorting_dialogue("201>", "012.")], 7)
    with pytest.raises(ValueError, match="no token of an answer"):
        masked_loss_forward(rng.standard_normal((1, 3, 5)), np.full((1, 3), IGNORE))
