"""Shared in the forward, summed in the backward."""

import numpy as np
import pytest
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_backward, cached_attention_forward
from multi_query_attention import MultiQueryWeights, multi_query_backward, multi_query_forward

B, S, D, H, K, U = 2, 5, 7, 3, 11, 13
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("sizes", [(2, 3, 5, 3, 2, 7), (1, 1, 1, 1, 1, 1), (1, 3, 2, 5, 1, 1)])
def test_gradients_agree_with_central_differences(sizes, rng, check_gradients):
    B, S, D, H, K, U = sizes
    weights = MultiQueryWeights.init(rng, D, H, K, U)
    x, dy = rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    dx, dweights = multi_query_backward(dy, multi_query_forward(x, weights)[1])
    check_gradients(
        lambda: float((multi_query_forward(x, weights)[0] * dy).sum()),
        {"x": x, **{n: getattr(weights, n) for n in NAMES}},
        {"x": dx, **{n: getattr(dweights, n) for n in NAMES}},
    )


def test_it_is_multi_head_attention_with_the_same_key_in_every_head(rng):
    weights = MultiQueryWeights.init(rng, D, H, K, U)
    tied = MultiHeadWeights(
        weights.q_proj, np.tile(weights.k_proj, (H, 1)), np.tile(weights.v_proj, (H, 1)), weights.o_proj, H
    )
    x, dy = rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    (y, cache), (want, want_cache) = multi_query_forward(x, weights), cached_attention_forward(x, tied)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-14)
    (dx, dweights), (want_dx, dtied) = multi_query_backward(dy, cache), cached_attention_backward(dy, want_cache)
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(dweights.k_proj, dtied.k_proj.reshape(H, K, D).sum(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dweights.v_proj, dtied.v_proj.reshape(H, U, D).sum(0), rtol=0, atol=1e-12)


def test_every_split_into_two_chunks_equals_one_shot(rng):
    weights, x = MultiQueryWeights.init(rng, D, H, K, U), rng.standard_normal((B, S, D))
    whole, _ = multi_query_forward(x, weights)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [multi_query_forward(part, weights, past)[0] for part in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-14)


def test_the_cache_holds_one_key_and_one_value_per_token(rng):
    past = TokenCache(S)
    multi_query_forward(rng.standard_normal((1, S, D)), MultiQueryWeights.init(rng, D, H, K, U), past)
    assert past.nbytes == 8 * S * (K + U)


def test_query_rows_that_are_no_multiple_of_the_key_are_refused(rng):
    weights = MultiQueryWeights(np.zeros((7, 5)), np.zeros((3, 5)), np.zeros((3, 5)), np.zeros((5, 6)))
    with pytest.raises(ValueError, match="q_proj has 7 rows, no multiple of the key's 3"):
        multi_query_forward(np.zeros((1, 2, 5)), weights)
