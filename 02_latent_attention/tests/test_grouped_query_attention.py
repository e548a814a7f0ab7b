"""One dial: J = H is multi-head, J = 1 is multi-query, and between them neighbours share."""

import numpy as np
import pytest
from grouped_query_attention import (
    GroupedQueryWeights,
    grouped_query_backward,
    grouped_query_forward,
    share_heads_backward,
    share_heads_forward,
)
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_backward, cached_attention_forward
from multi_query_attention import MultiQueryWeights, multi_query_forward

B, S, D, H, K, U = 2, 5, 7, 6, 11, 13
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("sizes", [(2, 3, 5, 6, 3, 2, 7), (2, 3, 5, 6, 2, 2, 1), (1, 1, 1, 1, 1, 1, 1)])
def test_gradients_agree_with_central_differences(sizes, rng, check_gradients):
    B, S, D, H, J, K, U = sizes
    weights = GroupedQueryWeights.init(rng, D, H, J, K, U)
    x, dy = rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    dx, dweights = grouped_query_backward(dy, grouped_query_forward(x, weights)[1])
    check_gradients(
        lambda: float((grouped_query_forward(x, weights)[0] * dy).sum()),
        {"x": x, **{n: getattr(weights, n) for n in NAMES}},
        {"x": dx, **{n: getattr(dweights, n) for n in NAMES}},
    )


def test_neighbouring_heads_read_the_same_key(rng):
    keys = np.arange(3.0).reshape(1, 3, 1, 1)
    assert share_heads_forward(keys, 2)[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_sharing_and_summing_are_adjoint(rng):
    x, dy = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((2, 6, 5, 7))
    assert np.isclose((share_heads_forward(x, 2) * dy).sum(), (x * share_heads_backward(dy, 2)).sum())


def test_as_many_key_heads_as_heads_is_multi_head_attention(rng):
    weights = GroupedQueryWeights.init(rng, D, H, H, K, U)
    plain = MultiHeadWeights(weights.q_proj, weights.k_proj, weights.v_proj, weights.o_proj, H)
    x = rng.standard_normal((B, S, D))
    (y, cache), (want, want_cache) = grouped_query_forward(x, weights), cached_attention_forward(x, plain)
    assert np.array_equal(y, want)
    assert np.array_equal(grouped_query_backward(y, cache)[0], cached_attention_backward(y, want_cache)[0])


def test_one_key_head_is_multi_query_attention(rng):
    weights = GroupedQueryWeights.init(rng, D, H, 1, K, U)
    single = MultiQueryWeights(weights.q_proj, weights.k_proj, weights.v_proj, weights.o_proj)
    x = rng.standard_normal((B, S, D))
    want = multi_query_forward(x, single)[0]
    np.testing.assert_allclose(grouped_query_forward(x, weights)[0], want, rtol=0, atol=1e-14)


def test_every_split_into_two_chunks_equals_one_shot(rng):
    weights, x = GroupedQueryWeights.init(rng, D, H, 2, K, U), rng.standard_normal((B, S, D))
    whole, _ = grouped_query_forward(x, weights)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [grouped_query_forward(part, weights, past)[0] for part in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("J", [1, 2, 3, 6])
def test_the_cache_holds_the_key_heads_not_the_query_heads(J, rng):
    past = TokenCache(S)
    grouped_query_forward(rng.standard_normal((1, S, D)), GroupedQueryWeights.init(rng, D, H, J, K, U), past)
    assert past.nbytes == 8 * S * J * (K + U)


def test_it_equals_pytorchs_own_grouped_attention(rng):
    torch = pytest.importorskip("torch")
    q, k, v = rng.standard_normal((2, 6, 5, 7)), rng.standard_normal((2, 2, 5, 7)), rng.standard_normal((2, 2, 5, 7))
    from kv_cache import attend_forward

    want = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q), torch.tensor(k), torch.tensor(v), is_causal=True, enable_gqa=True
    )
    got, _ = attend_forward(q, share_heads_forward(k, 3), share_heads_forward(v, 3), 7**-0.5)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-12, atol=1e-13)


def test_heads_that_do_not_divide_are_refused_with_the_choices(rng):
    with pytest.raises(ValueError, match=r"6 heads do not divide into 4 .* choose one of \[1, 2, 3, 6\]"):
        GroupedQueryWeights.init(rng, D, 6, 4, K, U)
