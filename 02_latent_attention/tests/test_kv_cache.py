"""The cache changes what is computed, never what comes out."""

from dataclasses import replace

import numpy as np
import pytest
from kv_cache import (
    MultiHeadWeights,
    TokenCache,
    attend_backward,
    attend_forward,
    cached_attention_backward,
    cached_attention_forward,
    decode_by_recomputing,
    decode_with_cache,
    merge_heads,
    split_heads,
)

B, S, D, H, K, U = 2, 5, 7, 3, 11, 13


@pytest.fixture
def layer(rng):
    return MultiHeadWeights.init(rng, D, H, K, U), rng.standard_normal((B, S, D))


@pytest.mark.parametrize("sizes", [(2, 3, 5, 3, 2, 7), (1, 1, 1, 1, 1, 1), (1, 4, 3, 1, 2, 1)])
def test_gradients_agree_with_central_differences(sizes, rng, check_gradients):
    B, S, D, H, K, U = sizes
    weights = MultiHeadWeights.init(rng, D, H, K, U)
    x, dy = rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    dx, dweights = cached_attention_backward(dy, cached_attention_forward(x, weights)[1])
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    check_gradients(
        lambda: float((cached_attention_forward(x, weights)[0] * dy).sum()),
        {"x": x, **{n: getattr(weights, n) for n in names}},
        {"x": dx, **{n: getattr(dweights, n) for n in names}},
    )


def test_gradients_of_the_core_agree_when_there_are_more_keys_than_queries(rng, check_gradients):
    q, k, v = rng.standard_normal((2, 3, 2, 5)), rng.standard_normal((2, 3, 7, 5)), rng.standard_normal((2, 3, 7, 3))
    do = rng.standard_normal((2, 3, 2, 3))
    dq, dk, dv = attend_backward(do, attend_forward(q, k, v, 0.37)[1])
    check_gradients(
        lambda: float((attend_forward(q, k, v, 0.37)[0] * do).sum()),
        {"q": q, "k": k, "v": v},
        {"q": dq, "k": dk, "v": dv},
    )


def test_gradients_behind_a_cache_treat_it_as_constant(layer, rng, check_gradients):
    weights, x = layer
    old, new, dy = x[:, :3], x[:, 3:].copy(), rng.standard_normal((B, S - 3, D))

    def run():
        past = TokenCache(S)
        cached_attention_forward(old, layer[0], past)
        return cached_attention_forward(new, replace(weights, q_proj=weights.q_proj), past)

    dx, _ = cached_attention_backward(dy, run()[1])
    check_gradients(lambda: float((run()[0] * dy).sum()), {"x": new}, {"x": dx})


def test_every_split_into_two_chunks_equals_one_shot(layer):
    weights, x = layer
    whole, _ = cached_attention_forward(x, weights)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [cached_attention_forward(part, weights, past)[0] for part in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-14)


def test_a_change_of_token_t_leaves_everything_before_t_unchanged_with_a_cache(layer):
    weights, x = layer
    outputs = []
    for bump in (0.0, 1.0):
        changed, past = x.copy(), TokenCache(S)
        changed[:, 4] += bump
        cached_attention_forward(changed[:, :2], weights, past)
        outputs.append(cached_attention_forward(changed[:, 2:], weights, past)[0])
    assert np.array_equal(outputs[0][:, :2], outputs[1][:, :2])
    assert not np.allclose(outputs[0][:, 2], outputs[1][:, 2])


def test_decoding_with_a_cache_projects_each_token_once_and_without_it_half_the_square(layer):
    weights, x = layer
    kept, n_kept = decode_with_cache(x, weights)
    again, n_again = decode_by_recomputing(x, weights)
    np.testing.assert_allclose(kept, again, rtol=0, atol=1e-14)
    assert (n_kept, n_again) == (S, S * (S + 1) // 2)


def test_heads_split_and_merge_without_loss(rng):
    x = rng.standard_normal((2, 5, 21))
    heads = split_heads(x, 3)
    assert np.array_equal(heads[1, 2, 4], x[1, 4, 14:])
    assert np.array_equal(merge_heads(heads), x)


def test_float32_stays_float32(layer):
    weights, x = layer
    single = MultiHeadWeights(*(getattr(weights, n).astype("f4") for n in ("q_proj", "k_proj", "v_proj", "o_proj")), H)
    y, cache = cached_attention_forward(x.astype("f4"), single, TokenCache(S))
    dx, dweights = cached_attention_backward(y, cache)
    assert {y.dtype, dx.dtype, dweights.k_proj.dtype} == {np.dtype("f4")}


def test_truncating_forgets_the_last_tokens_and_nothing_else(rng):
    cache, parts = TokenCache(7), rng.standard_normal((5, 3))
    cache.append(parts)
    cache.truncate(2)
    (kept,) = cache.append(parts[4:])
    assert np.array_equal(kept, parts[[0, 1, 4]])
    assert cache.nbytes == 3 * 3 * 8


def test_a_cache_that_is_full_or_does_not_fit_says_so(rng):
    cache = TokenCache(3)
    cache.append(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"2 tokens after 2 exceed capacity=3; ask for 4"):
        cache.append(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="does not continue"):
        cache.append(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="cannot keep 5 of 2"):
        cache.truncate(5)
    with pytest.raises(ValueError, match="at least 1"):
        TokenCache(0)


def test_shapes_that_do_not_fit_are_refused_with_the_numbers(layer):
    weights, x = layer
    with pytest.raises(ValueError, match=r"expected \[B, S, 7\]"):
        cached_attention_forward(x[..., :5], weights)
    with pytest.raises(ValueError, match=r"expected \[B, S, 7\]"):
        cached_attention_forward(x[0], weights)
    with pytest.raises(ValueError, match="at least one token"):
        cached_attention_forward(x[:, :0], weights)
    with pytest.raises(ValueError, match="width 7 does not divide into 3 heads"):
        split_heads(x, 3)
    with pytest.raises(ValueError, match="5 queries but only 2 keys"):
        attend_forward(np.zeros((1, 1, 5, 3)), np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 2, 3)), 1.0)


def test_the_core_equals_pytorchs_own_attention(rng):
    torch = pytest.importorskip("torch")
    q, k, v = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((2, 3, 5, 11))
    do = rng.standard_normal((2, 3, 5, 11))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.29)
    want.backward(torch.tensor(do))
    got, cache = attend_forward(q, k, v, 0.29)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-12, atol=1e-13)
    for gradient, tensor in zip(attend_backward(do, cache), tensors):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-11, atol=1e-13)
