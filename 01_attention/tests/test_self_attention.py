"""Self-attention: a weighted mean with sharp properties, and its gradient."""

from dataclasses import fields, replace

import numpy as np
import pytest
from self_attention import (
    SelfAttentionWeights,
    attend_backward,
    attend_forward,
    score_keys,
    self_attend_backward,
    self_attend_forward,
    share_attention,
)

# (axes in front, S, T, K, U)
SIZES = [((), 3, 5, 7, 2), ((2,), 3, 5, 7, 11), ((2, 3), 5, 7, 1, 3), ((), 1, 1, 1, 1), ((), 1, 5, 3, 1)]


def draw(rng, front, S, T, K, U):
    return rng.normal(size=(*front, S, K)), rng.normal(size=(*front, T, K)), rng.normal(size=(*front, T, U))


def test_two_tokens_by_pencil():
    key = np.array([[0.0, 0, 0, 0], [np.log(3.0), 0, 0, 0]])
    out, cache = attend_forward(np.array([[2.0, 0, 0, 0]]), key, np.array([[4.0, 0.0], [0.0, 8.0]]))
    dquery, dkey, dvalue = attend_backward(np.ones((1, 2)), cache)
    np.testing.assert_allclose(out, [[1.0, 6.0]], rtol=1e-14)
    np.testing.assert_allclose(dquery, [[0.375 * np.log(3.0), 0, 0, 0]], rtol=1e-13)
    np.testing.assert_allclose(dkey, [[-0.75, 0, 0, 0], [0.75, 0, 0, 0]], rtol=1e-13)
    np.testing.assert_allclose(dvalue, [[0.25, 0.25], [0.75, 0.75]], rtol=1e-14)


def test_the_shares_of_a_query_are_positive_and_sum_to_one(rng):
    prob = share_attention(rng.normal(size=(3, 5, 7)) * 30)
    assert prob.min() >= 0
    np.testing.assert_allclose(prob.sum(axis=-1), 1, rtol=1e-14)


def test_huge_scores_do_not_overflow():
    np.testing.assert_allclose(share_attention(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0.0]])


def test_a_score_added_to_every_key_changes_nothing(rng):
    score = rng.normal(size=(3, 5))
    np.testing.assert_allclose(share_attention(score + 100.0), share_attention(score), rtol=1e-12)


def test_an_output_lies_between_the_smallest_and_the_largest_value(rng):
    query, key, value = draw(rng, (), 3, 5, 7, 2)
    out, _ = attend_forward(5 * query, key, value)
    assert (out >= value.min(axis=0)).all()
    assert (out <= value.max(axis=0)).all()


def test_equal_keys_give_the_plain_mean(rng):
    query, key, value = draw(rng, (), 3, 5, 7, 2)
    out, _ = attend_forward(query, np.broadcast_to(key[:1], key.shape), value)
    np.testing.assert_allclose(out, np.broadcast_to(value.mean(axis=0), out.shape), rtol=1e-12)


def test_the_scale_keeps_the_spread_of_the_scores_at_one_for_every_width(rng):
    for width in (5, 61, 499):
        spread = np.std(score_keys(rng.normal(size=(200, width)), rng.normal(size=(200, width))))
        assert 0.9 < spread < 1.1  # 40,000 scores, not independent: one tenth is several standard errors


def test_the_scale_is_that_of_the_key_width_not_of_the_values(rng):
    query, key, value = draw(rng, (), 3, 5, 7, 2)
    by_hand = np.exp(query @ key.T / np.sqrt(7))
    np.testing.assert_allclose(attend_forward(query, key, value)[1][3], by_hand / by_hand.sum(1, keepdims=True))


def test_attention_does_not_know_the_order_of_the_tokens(rng):
    """Shuffle the tokens: the outputs are shuffled alike. Positions must come from elsewhere (chapter 02)."""
    weights, hidden, order = SelfAttentionWeights.init(rng, 5, 3, 2), rng.normal(size=(7, 5)), rng.permutation(7)
    out, _ = self_attend_forward(hidden, weights)
    np.testing.assert_allclose(self_attend_forward(hidden[order], weights)[0], out[order], rtol=1e-12)


def test_moving_all_scores_of_a_query_together_has_no_gradient(rng):
    """A component shared by all keys adds the same score everywhere, so the key gradients of a query sum to zero."""
    query, key, value = draw(rng, (), 1, 5, 7, 2)
    _, dkey, _ = attend_backward(rng.normal(size=(1, 2)), attend_forward(query, key, value)[1])
    np.testing.assert_allclose(dkey.sum(axis=0), 0, atol=1e-14)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
def test_the_gradient_of_attention_agrees_with_central_differences(sizes, rng, check_gradients):
    query, key, value = draw(rng, *sizes)
    dout = rng.normal(size=attend_forward(query, key, value)[0].shape)
    dquery, dkey, dvalue = attend_backward(dout, attend_forward(query, key, value)[1])
    check_gradients(
        lambda: np.sum(dout * attend_forward(query, key, value)[0]),
        {"query": query, "key": key, "value": value},
        {"query": dquery, "key": dkey, "value": dvalue},
    )


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 1)])
def test_the_gradient_of_self_attention_agrees_with_central_differences(shape, rng, check_gradients):
    weights, hidden = SelfAttentionWeights.init(rng, shape[-1], 3, 2), rng.normal(size=shape)
    dout = rng.normal(size=(*shape[:-1], 2))
    dhidden, dweights = self_attend_backward(dout, self_attend_forward(hidden, weights)[1])
    names = [f.name for f in fields(weights)]
    check_gradients(
        lambda: np.sum(dout * self_attend_forward(hidden, weights)[0]),
        {"hidden": hidden, **{n: getattr(weights, n) for n in names}},
        {"hidden": dhidden, **{n: getattr(dweights, n) for n in names}},
    )


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
def test_it_equals_the_attention_of_pytorch_forward_and_backward(sizes, rng):
    torch = pytest.importorskip("torch")
    arrays = draw(rng, *sizes)
    out, cache = attend_forward(*arrays)
    dout = rng.normal(size=out.shape)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    want = torch.nn.functional.scaled_dot_product_attention(*tensors)
    want.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    for got, tensor in zip(attend_backward(dout, cache), tensors):
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused_with_their_numbers(rng):
    query, key, value = draw(rng, (2,), 3, 5, 7, 2)
    with pytest.raises(ValueError, match="width 6 cannot meet keys of width 7"):
        attend_forward(query[..., :6], key, value)
    with pytest.raises(ValueError, match="differ before their last two axes"):
        attend_forward(query[:1], key, value)  # would broadcast in silence
    with pytest.raises(ValueError, match="one value for each key"):
        attend_forward(query, key, value[:, :4])
    weights = SelfAttentionWeights.init(rng, 5, 3, 2)
    with pytest.raises(ValueError, match="width 7, q_proj reads 5"):
        self_attend_forward(np.ones((3, 7)), weights)
    with pytest.raises(ValueError, match="width 5, v_proj reads 7"):
        self_attend_forward(np.ones((3, 5)), replace(weights, v_proj=np.ones((2, 7))))
    with pytest.raises(ValueError, match="same number of rows"):
        self_attend_forward(np.ones((3, 5)), replace(weights, k_proj=np.ones((2, 5))))
