"""Causal attention: who sees whom, what a mask of the wrong size does, and that the future stays dark."""

import numpy as np
import pytest
from causal_attention import (
    attend_causally_backward,
    attend_causally_forward,
    attend_masked_forward,
    causal_mask,
)
from self_attention import SelfAttentionWeights, self_attend_backward, self_attend_forward

# (axes in front, S, T, K, U)
SIZES = [((), 5, 5, 3, 2), ((2,), 3, 7, 5, 11), ((2, 3), 2, 2, 1, 3), ((), 1, 1, 1, 1), ((), 1, 5, 3, 1)]


def draw(rng, front, S, T, K, U):
    return rng.normal(size=(*front, S, K)), rng.normal(size=(*front, T, K)), rng.normal(size=(*front, T, U))


def test_the_mask_is_the_lower_triangle_with_its_diagonal():
    assert np.array_equal(causal_mask(5, 5), np.tril(np.ones((5, 5), dtype=bool)))


def test_with_older_keys_the_diagonal_ends_in_the_last_corner():
    assert np.array_equal(causal_mask(2, 5), [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert causal_mask(1, 7).all()


def test_equal_scores_give_the_running_mean(rng):
    value = rng.normal(size=(7, 2))
    out, _ = attend_causally_forward(np.zeros((7, 3)), np.zeros((7, 3)), value)
    np.testing.assert_allclose(out, np.cumsum(value, axis=0) / np.arange(1, 8)[:, None], rtol=1e-12)


@pytest.mark.parametrize("edited", range(5))
def test_a_changed_token_changes_nothing_before_it(edited, rng):
    weights, hidden = SelfAttentionWeights.init(rng, 7, 3, 2), rng.normal(size=(5, 7))
    out, _ = self_attend_forward(hidden, weights, attend_causally_forward)
    hidden[edited] += 1.0
    moved, _ = self_attend_forward(hidden, weights, attend_causally_forward)
    assert np.array_equal(out[:edited], moved[:edited])  # exactly: a share of zero lets nothing through
    assert (np.abs(out[edited:] - moved[edited:]).max(axis=-1) > 1e-6).all()


def test_no_gradient_flows_to_the_future(rng):
    query, key, value = draw(rng, (), 5, 5, 3, 2)
    dout = np.zeros((5, 2))
    dout[2] = 1.0  # the loss reads output 2 only
    dquery, dkey, dvalue = attend_causally_backward(dout, attend_causally_forward(query, key, value)[1])
    assert not dkey[3:].any()
    assert not dvalue[3:].any()
    assert not np.delete(dquery, 2, axis=0).any()


def test_the_shares_of_each_row_still_sum_to_one(rng):
    _, cache = attend_causally_forward(*draw(rng, (), 5, 7, 3, 2))
    np.testing.assert_allclose(cache[3].sum(axis=-1), 1, rtol=1e-14)
    assert not cache[3][~causal_mask(5, 7)].any()


@pytest.mark.parametrize("cut", range(1, 7))
def test_two_chunks_give_what_one_pass_gives(cut, rng):
    """Rows `cut` and later, asked with all keys present, as a cache does it: the mask must be offset."""
    query, key, value = draw(rng, (2,), 7, 7, 3, 5)
    whole, _ = attend_causally_forward(query, key, value)
    first, _ = attend_causally_forward(query[:, :cut], key[:, :cut], value[:, :cut])
    second, _ = attend_causally_forward(query[:, cut:], key, value)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
def test_the_gradient_agrees_with_central_differences(sizes, rng, check_gradients):
    query, key, value = draw(rng, *sizes)
    dout = rng.normal(size=attend_causally_forward(query, key, value)[0].shape)
    dquery, dkey, dvalue = attend_causally_backward(dout, attend_causally_forward(query, key, value)[1])
    check_gradients(
        lambda: np.sum(dout * attend_causally_forward(query, key, value)[0]),
        {"query": query, "key": key, "value": value},
        {"query": dquery, "key": dkey, "value": dvalue},
    )


def test_the_gradient_of_causal_self_attention_agrees_with_central_differences(rng, check_gradients):
    weights, hidden, dout = SelfAttentionWeights.init(rng, 5, 3, 2), rng.normal(size=(7, 5)), rng.normal(size=(7, 2))
    dhidden, dweights = self_attend_backward(dout, self_attend_forward(hidden, weights, attend_causally_forward)[1])
    check_gradients(
        lambda: np.sum(dout * self_attend_forward(hidden, weights, attend_causally_forward)[0]),
        {"hidden": hidden, **vars(weights)},
        {"hidden": dhidden, **vars(dweights)},
    )


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
def test_it_equals_the_attention_of_pytorch_with_the_same_mask(sizes, rng):
    torch = pytest.importorskip("torch")
    arrays = draw(rng, *sizes)
    out, cache = attend_causally_forward(*arrays)
    dout = rng.normal(size=out.shape)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    mask = torch.ones(sizes[1], sizes[2], dtype=torch.bool).tril(diagonal=sizes[2] - sizes[1])
    want = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    want.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    for got, tensor in zip(attend_causally_backward(dout, cache), tensors):
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_masks_that_do_not_fit_are_refused_with_their_numbers(rng):
    query, key, value = draw(rng, (), 3, 5, 7, 2)
    with pytest.raises(ValueError, match=r"bool\(5, 5\), need bool\(3, 5\)"):
        attend_masked_forward(query, key, value, causal_mask(5, 5))
    with pytest.raises(ValueError, match=r"bool\(1, 5\), need bool\(3, 5\)"):  # would broadcast in silence
        attend_masked_forward(query, key, value, causal_mask(1, 5))
    with pytest.raises(ValueError, match=r"mask float64\(3, 5\)"):  # zeros and -inf would mean the opposite
        attend_masked_forward(query, key, value, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="query 1 may look at no key"):
        attend_masked_forward(query, key, value, np.array([[1], [0], [1]], dtype=bool) & causal_mask(3, 5))
    with pytest.raises(ValueError, match="5 queries but only 3 keys"):
        attend_causally_forward(np.ones((5, 7)), np.ones((3, 7)), np.ones((3, 2)))
