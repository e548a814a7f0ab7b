"""Keys and values are one latent, seen through two matrices."""

import numpy as np
import pytest
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_forward
from latent_attention import (
    LatentWeights,
    compress_projections,
    latent_attention_backward,
    latent_attention_forward,
    score_from_latent,
)

B, S, D, H, K, U, C = 2, 5, 7, 3, 11, 13, 4
NAMES = ("q_proj", "kv_a_proj", "kv_b_proj", "o_proj")


@pytest.mark.parametrize("sizes", [(2, 3, 5, 3, 2, 7, 4), (1, 1, 1, 1, 1, 1, 1), (1, 3, 2, 2, 1, 3, 1)])
def test_gradients_agree_with_central_differences(sizes, rng, check_gradients):
    B, S, D, H, K, U, C = sizes
    weights = LatentWeights.init(rng, D, H, K, U, C)
    x, dy = rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    dx, dweights = latent_attention_backward(dy, latent_attention_forward(x, weights)[1])
    check_gradients(
        lambda: float((latent_attention_forward(x, weights)[0] * dy).sum()),
        {"x": x, **{n: getattr(weights, n) for n in NAMES}},
        {"x": dx, **{n: getattr(dweights, n) for n in NAMES}},
    )


def test_it_is_multi_head_attention_whose_projections_have_rank_c(rng):  # V3 Eq. (1), V3 Eq. (2), V3 Eq. (5)
    weights, x = LatentWeights.init(rng, D, H, K, U, C), rng.standard_normal((B, S, D))
    joint = (weights.kv_b_proj @ weights.kv_a_proj).reshape(H, K + U, D)
    plain = MultiHeadWeights(
        weights.q_proj, joint[:, :K].reshape(-1, D), joint[:, K:].reshape(-1, D), weights.o_proj, H
    )
    assert np.linalg.matrix_rank(plain.k_proj) == C
    np.testing.assert_allclose(
        latent_attention_forward(x, weights)[0], cached_attention_forward(x, plain)[0], rtol=0, atol=1e-13
    )


def test_compressing_at_full_rank_changes_nothing(rng):
    plain, x = MultiHeadWeights.init(rng, D, H, K, U), rng.standard_normal((B, S, D))
    kv_a, kv_b = compress_projections(plain.k_proj, plain.v_proj, H, rank=D)
    weights = LatentWeights(plain.q_proj, kv_a, kv_b, plain.o_proj, H)
    np.testing.assert_allclose(
        latent_attention_forward(x, weights)[0], cached_attention_forward(x, plain)[0], rtol=0, atol=1e-13
    )


def test_one_joint_latent_is_never_worse_than_two_of_half_the_width(rng):
    plain = MultiHeadWeights.init(rng, D, H, K, U)
    stack = np.concatenate([plain.k_proj, plain.v_proj])

    def miss(matrix, rank):
        return (np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum()

    for half in (1, 2, 3):
        apart = miss(plain.k_proj, half) + miss(plain.v_proj, half)
        assert miss(stack, 2 * half) <= apart + 1e-12


def test_the_scores_need_no_keys(rng):
    weights, x = LatentWeights.init(rng, D, H, K, U, C), rng.standard_normal((B, S, D))
    _, (_, _, (q, k, *_), latent, _) = latent_attention_forward(x, weights)
    want = K**-0.5 * q @ k.swapaxes(-1, -2)
    np.testing.assert_allclose(score_from_latent(q, latent, weights), want, rtol=0, atol=1e-13)


def test_every_split_into_two_chunks_equals_one_shot(rng):
    weights, x = LatentWeights.init(rng, D, H, K, U, C), rng.standard_normal((B, S, D))
    whole, _ = latent_attention_forward(x, weights)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [latent_attention_forward(part, weights, past)[0] for part in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-13)
        assert past.nbytes == 8 * B * S * C


def test_without_positions_a_shuffled_past_gives_the_same_answer(rng):
    """What is missing here, and what the next two modules add."""
    weights, x = LatentWeights.init(rng, D, H, K, U, C), rng.standard_normal((B, S, D))
    shuffled = x.copy()
    shuffled[:, :4] = x[:, [2, 0, 3, 1]]
    last = [latent_attention_forward(each, weights)[0][:, -1] for each in (x, shuffled)]
    np.testing.assert_allclose(last[0], last[1], rtol=0, atol=1e-13)


def test_a_rank_beyond_the_matrix_is_refused(rng):
    with pytest.raises(ValueError, match="choose 1 to 7"):
        compress_projections(np.zeros((33, 7)), np.zeros((39, 7)), 3, rank=8)
