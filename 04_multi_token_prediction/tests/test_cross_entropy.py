"""The loss, its gradient, what does not count, and the head that never holds all logits."""

import numpy as np
import pytest
from cross_entropy import (
    IGNORE,
    bits_per_byte,
    cross_entropy_backward,
    cross_entropy_forward,
    head_loss_backward,
    head_loss_forward,
    perplexity,
)


@pytest.fixture
def case(rng):
    """Logits [2, 5, 7] and targets of which some do not count."""
    target = rng.integers(0, 7, (2, 5))
    target[0, 3] = target[1, 0] = target[1, 4] = IGNORE
    return rng.standard_normal((2, 5, 7)), target


def test_a_uniform_model_pays_the_logarithm_of_the_vocabulary():
    loss, _ = cross_entropy_forward(np.full((3, 7), 2.5), np.array([0, 3, 6]))
    assert loss == pytest.approx(np.log(7), rel=1e-14)
    assert perplexity(loss) == pytest.approx(7, rel=1e-14)


def test_the_pencil_example_comes_out():
    loss, _ = cross_entropy_forward(np.log([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]), np.array([1, 0]))
    assert loss == pytest.approx(-(np.log(1 / 2) + np.log(3 / 4)) / 2, rel=1e-14)


def test_the_gradient_agrees_with_central_differences(case, check_gradients):
    logits, target = case
    _, cache = cross_entropy_forward(logits, target)
    check_gradients(
        lambda: cross_entropy_forward(logits, target)[0],
        {"logits": logits},
        {"logits": cross_entropy_backward(1.0, cache)},
    )


def test_the_gradient_of_every_row_sums_to_zero_and_ignored_rows_have_none(case):
    logits, target = case
    dlogits = cross_entropy_backward(1.0, cross_entropy_forward(logits, target)[1])
    assert np.abs(dlogits.sum(axis=-1)).max() < 1e-15
    assert not dlogits[target == IGNORE].any()
    assert (np.abs(dlogits[target != IGNORE]).max(axis=-1) > 0).all()


def test_an_ignored_row_changes_nothing(case):
    logits, target = case
    before = cross_entropy_forward(logits, target)[0]
    logits[target == IGNORE] = 1e3
    assert cross_entropy_forward(logits, target)[0] == before


def test_a_given_divisor_replaces_the_number_of_rows_that_count(case):
    logits, target = case
    mean, counted = cross_entropy_forward(logits, target)[0], (target != IGNORE).sum()
    assert cross_entropy_forward(logits, target, divisor=13)[0] == pytest.approx(mean * counted / 13, rel=1e-14)


def test_a_shift_of_all_logits_changes_nothing_and_large_ones_do_not_overflow(case):
    logits, target = case
    loss = cross_entropy_forward(logits, target)[0]
    assert cross_entropy_forward(logits + 1e4, target)[0] == pytest.approx(loss, rel=1e-9)


def test_a_banned_token_has_no_gradient_and_costs_nothing(case):
    logits, target = case
    target[target == 2] = 3
    logits[..., 2] = -np.inf
    loss, cache = cross_entropy_forward(logits, target)
    assert np.isfinite(loss)
    assert not cross_entropy_backward(1.0, cache)[..., 2].any()


@pytest.mark.parametrize("chunk", [1, 3, 10, 4096])
def test_the_chunked_head_is_the_plain_one(case, rng, chunk):
    _, target = case
    hidden, lm_head = rng.standard_normal((2, 5, 3)), rng.standard_normal((7, 3))
    loss, cache = cross_entropy_forward(hidden @ lm_head.T, target)
    dlogits = cross_entropy_backward(0.3, cache)
    got, head_cache = head_loss_forward(hidden, lm_head, target, chunk=chunk)
    dhidden, dlm_head = head_loss_backward(0.3, head_cache)
    assert got == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(dhidden, dlogits @ lm_head, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dlm_head, np.einsum("bsv,bsd->vd", dlogits, hidden), rtol=1e-12, atol=1e-15)


def test_the_gradients_of_the_head_agree_with_central_differences(case, rng, check_gradients):
    _, target = case
    hidden, lm_head = rng.standard_normal((2, 5, 3)), rng.standard_normal((7, 3))
    _, cache = head_loss_forward(hidden, lm_head, target, divisor=11, chunk=4)
    dhidden, dlm_head = head_loss_backward(1.0, cache)
    check_gradients(
        lambda: head_loss_forward(hidden, lm_head, target, divisor=11, chunk=4)[0],
        {"hidden": hidden, "lm_head": lm_head},
        {"hidden": dhidden, "lm_head": dlm_head},
    )


def test_float32_stays_float32(case, rng):
    logits, target = case
    assert cross_entropy_backward(1.0, cross_entropy_forward(logits.astype(np.float32), target)[1]).dtype == np.float32
    hidden, lm_head = rng.standard_normal((2, 5, 3)).astype(np.float32), rng.standard_normal((7, 3)).astype(np.float32)
    gradients = head_loss_backward(0.3, head_loss_forward(hidden, lm_head, target)[1])
    assert {g.dtype for g in gradients} == {np.dtype(np.float32)}


def test_one_row_and_one_token_work():
    loss, cache = cross_entropy_forward(np.array([[3.0]]), np.array([0]))
    assert loss == 0
    assert cross_entropy_backward(1.0, cache).tolist() == [[0.0]]


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    assert bits_per_byte(np.log(2) * 6, n_tokens=10, n_bytes=30) == pytest.approx(2.0, rel=1e-14)


def test_what_cannot_be_right_is_refused(case):
    logits, target = case
    with pytest.raises(ValueError, match=r"need targets \(2, 5\)"):
        cross_entropy_forward(logits, target[:, :4])
    with pytest.raises(ValueError, match=r"leave the vocabulary 0\.\.6"):
        cross_entropy_forward(logits, np.full((2, 5), 7))
    with pytest.raises(ValueError, match="no row counts"):
        cross_entropy_forward(logits, np.full((2, 5), IGNORE))
    with pytest.raises(ValueError, match="chunk=0"):
        head_loss_forward(logits, np.eye(7), target, chunk=0)
    with pytest.raises(ValueError, match="10 rows"):
        head_loss_forward(logits, np.eye(7), target[:, :4])


def test_torch_agrees(case):
    torch = pytest.importorskip("torch")
    logits, target = case
    leaf = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(leaf.reshape(-1, 7), torch.tensor(target).reshape(-1))
    want.backward()
    loss, cache = cross_entropy_forward(logits, target)
    assert loss == pytest.approx(want.item(), rel=1e-13)
    np.testing.assert_allclose(cross_entropy_backward(1.0, cache), leaf.grad.numpy(), rtol=1e-12, atol=1e-16)
