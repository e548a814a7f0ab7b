"""The compact block: causal, cached as uncached, and its gradients."""

from dataclasses import fields

import numpy as np
import pytest
from causal_block import CompactBlock, KeyValueCache, compact_block_backward, compact_block_forward, rotate


@pytest.fixture
def case(rng):
    """A block of width 6 with 3 heads, and two sequences of 5 rows."""
    weights = CompactBlock.init(rng, 6, 11)
    position = np.broadcast_to(np.arange(5), (2, 5))
    return weights, rng.standard_normal((2, 5, 6)), position


def test_every_gradient_agrees_with_central_differences(case, rng, check_gradients):
    weights, x, position = case
    for norm in (weights.input_layernorm, weights.post_attention_layernorm):
        norm += 0.3 * rng.standard_normal(norm.shape)
    dy = rng.standard_normal(x.shape)
    _, cache = compact_block_forward(weights, x, position, 3)
    dx, dweights = compact_block_backward(dy, cache)
    names = [f.name for f in fields(CompactBlock)]
    check_gradients(
        lambda: float((compact_block_forward(weights, x, position, 3)[0] * dy).sum()),
        {"x": x} | {n: getattr(weights, n) for n in names},
        {"x": dx} | {n: getattr(dweights, n) for n in names},
    )


def test_a_row_does_not_see_later_rows(case):
    weights, x, position = case
    before = compact_block_forward(weights, x, position, 3)[0]
    x[:, 3] += 1
    moved = np.abs(compact_block_forward(weights, x, position, 3)[0] - before).max(axis=(0, 2))
    assert not moved[:3].any()
    assert (moved[3:] > 1e-3).all()


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_two_chunks_through_the_cache_equal_one_pass(case, cut):
    weights, x, position = case
    whole, kv = compact_block_forward(weights, x, position, 3)[0], KeyValueCache()
    parts = [compact_block_forward(weights, x[:, s], position[:, s], 3, kv)[0] for s in (slice(0, cut), slice(cut, 5))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-14)  # a few roundings
    assert kv.length == 5


def test_truncated_rows_leave_no_trace(case, rng):
    weights, x, position = case
    kv = KeyValueCache()
    compact_block_forward(weights, x[:, :2], position[:, :2], 3, kv)
    compact_block_forward(weights, rng.standard_normal((2, 2, 6)), position[:, 2:4], 3, kv)
    kv.truncate(2)
    rest = compact_block_forward(weights, x[:, 2:], position[:, 2:], 3, kv)[0]
    np.testing.assert_allclose(rest, compact_block_forward(weights, x, position, 3)[0][:, 2:], rtol=0, atol=1e-14)


def test_an_emptied_cache_is_like_new(case):
    weights, x, position = case
    kv = KeyValueCache()
    kv.truncate(0)
    compact_block_forward(weights, x, position, 3, kv)
    kv.truncate(0)
    assert kv.length == 0
    with pytest.raises(ValueError, match="cannot keep 3 rows of a cache of 0"):
        kv.truncate(3)


def test_only_distances_between_positions_matter(case):
    weights, x, position = case
    here, there = (
        compact_block_forward(weights, x, position, 3)[0],
        compact_block_forward(weights, x, position + 17, 3)[0],
    )
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-13)  # cos and sin of larger angles
    stretched = compact_block_forward(weights, x, position * 2, 3)[0]
    assert np.abs(stretched - here).max() > 1e-3


def test_rotation_keeps_length_and_turns_back(rng):
    x, position = rng.standard_normal((2, 3, 5, 4)), np.arange(10).reshape(2, 5)
    turned = rotate(x, position)
    np.testing.assert_allclose((turned**2).sum(axis=-1), (x**2).sum(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(rotate(turned, position, -1.0), x, rtol=0, atol=1e-14)


def test_float32_stays_float32(rng):
    weights, x = CompactBlock.init(rng, 6, 11, np.float32), rng.standard_normal((1, 2, 6)).astype(np.float32)
    y, cache = compact_block_forward(weights, x, np.arange(2)[None], 3)
    dx, dweights = compact_block_backward(y, cache)
    assert {y.dtype, dx.dtype, *(getattr(dweights, f.name).dtype for f in fields(CompactBlock))} == {np.dtype("f4")}


def test_one_row_one_head_works(rng):
    weights, x = CompactBlock.init(rng, 2, 1), rng.standard_normal((1, 1, 2))
    assert compact_block_forward(weights, x, np.zeros((1, 1)), 1)[0].shape == (1, 1, 2)
