"""Who reads what at which depth, what counts, what it weighs, and the gradients of chain and heads."""

from functools import partial

import numpy as np
import pytest
from causal_block import CompactBlock, compact_block_backward, compact_block_forward
from cross_entropy import IGNORE
from mtp_module import MtpWeights
from mtp_pretraining import (
    Depth,
    count_main_rows,
    depth_targets,
    index_rows,
    mtp_loss_backward,
    mtp_loss_forward,
    parallel_loss_backward,
    parallel_loss_forward,
    scatter_rows,
)

B, S, D, V = 2, 7, 6, 5
T = S - 1
MODULE = tuple(MtpWeights.__dataclass_fields__)
BLOCK = tuple(CompactBlock.__dataclass_fields__)
BOTH = pytest.mark.parametrize(
    ("forward", "backward"),
    [(mtp_loss_forward, mtp_loss_backward), (parallel_loss_forward, parallel_loss_backward)],
    ids=["chain", "parallel"],
)


def keep_forward(x, position):
    """A block that does nothing."""
    return x, None


def keep_backward(dy, cache):
    """Its gradient."""
    return dy, None


def make_depths(rng, n_depths):
    """Modules with a real block each, and norms away from one."""
    depths, blocks = [], []
    for _ in range(n_depths):
        weights, block = MtpWeights.init(rng, D), CompactBlock.init(rng, D, 3)
        for norm in (weights.enorm, weights.hnorm, weights.shared_head_norm):
            norm += 0.3 * rng.standard_normal(D)
        depths.append(Depth(weights, partial(compact_block_forward, block, n_heads=3), compact_block_backward))
        blocks.append(block)
    return depths, blocks


@pytest.fixture
def case(rng):
    """Embedding, head, main rows and tokens of two packed windows."""
    tokens = rng.integers(0, V, (B, S))
    document = np.array([[0, 0, 0, 0, 0, 0, 1], [4, 4, 5, 5, 5, 5, 5]])
    return (*(rng.standard_normal(s) for s in ((V, D), (V, D), (B, T, D))), tokens, document)


def test_the_table_of_six_tokens_is_the_worked_example():
    main, first, second = (index_rows(6, k) for k in range(3))
    assert main.read.tolist() == [0, 1, 2, 3, 4]
    assert main.target.tolist() == [1, 2, 3, 4, 5]
    assert first.position.tolist() == [0, 1, 2, 3]
    assert first.read.tolist() == [1, 2, 3, 4]
    assert first.target.tolist() == [2, 3, 4, 5]
    assert (second.position.tolist(), second.read.tolist(), second.target.tolist()) == ([0, 1, 2], [2, 3, 4], [3, 4, 5])


def test_no_row_reads_its_own_target_or_anything_later():
    for k in range(4):
        rows = index_rows(11, k)
        assert (rows.read < rows.target).all()
        assert len(rows.position) == 10 - k


def test_the_spy_sees_which_token_which_hidden_row_and_which_position_meet():
    size = 7  # every token and every hidden row is a unit vector, so that the block's input says who came in
    tokens, hidden, seen = np.array([[3, 1, 4, 0, 5, 2, 6]]), np.eye(size)[None, :6], []

    def spy(x, position):
        seen.append((x.argmax(axis=-1), position))
        return x, None

    look_at_embedding = np.concatenate([np.eye(size), np.zeros((size, size))], axis=1)
    look_at_hidden = np.concatenate([np.zeros((size, size)), np.eye(size)], axis=1)
    for matrix in (look_at_embedding, look_at_hidden):
        ones = np.ones(size)
        depths = [Depth(MtpWeights(ones, ones, matrix, ones), spy, keep_backward)] * 2
        mtp_loss_forward(depths, np.eye(size), np.eye(size), hidden, tokens)
    (first_token, first_at), (second_token, second_at), (first_row, _), (second_row, _) = seen
    assert first_token.tolist() == [[1, 4, 0, 5, 2]]  # t_{i+1}
    assert second_token.tolist() == [[4, 0, 5, 2]]  # t_{i+2}
    assert first_row.tolist() == first_at.tolist() == [[0, 1, 2, 3, 4]]
    assert second_row.tolist() == second_at.tolist() == [[0, 1, 2, 3]]


@BOTH
def test_a_token_that_is_only_ever_a_target_leaves_no_gradient_in_the_embedding(case, rng, forward, backward):
    embed, head, hidden, tokens, _ = case
    tokens[:, -1] = V - 1
    tokens[:, :-1] %= V - 1
    _, _, cache = forward(make_depths(rng, 2)[0], embed, head, hidden, tokens)
    assert not backward(1.0, cache).dembed_tokens_VD[V - 1].any()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_row_counts_exactly_when_all_its_tokens_are_of_one_document(rng, depth):
    document = np.sort(rng.integers(0, 3, (5, 11)), axis=1)
    tokens = rng.integers(0, V, (5, 11))
    target = depth_targets(tokens, depth, document)
    for b, i in np.ndindex(target.shape):
        one_document = len(set(document[b, i : i + depth + 2])) == 1
        assert target[b, i] == (tokens[b, i + depth + 1] if one_document else IGNORE)


def test_the_loss_of_depth_k_is_a_sum_of_t_minus_k_terms_over_t(case, rng):
    embed, head, hidden, tokens, _ = case
    weighted, losses, _ = mtp_loss_forward(make_depths(rng, 3)[0], embed, 0 * head, hidden, tokens)
    assert losses == pytest.approx([np.log(V) * (T - k) / T for k in (1, 2, 3)], rel=1e-14)
    assert weighted == pytest.approx(0.3 / 3 * sum(losses), rel=1e-14)


@BOTH
def test_rows_across_documents_give_neither_loss_nor_gradient(case, rng, forward, backward):
    embed, _, hidden, tokens, document = case
    depths = [Depth(MtpWeights.init(rng, D), keep_forward, keep_backward)]
    _, losses, cache = forward(depths, embed, np.zeros((V, D)), hidden, tokens, document)
    counted, n_main = depth_targets(tokens, 1, document) != IGNORE, count_main_rows(tokens, document)
    assert (counted.sum(), n_main) == (7, 10)
    assert losses[0] == pytest.approx(np.log(V) * 7 / 10, rel=1e-14)
    head = rng.standard_normal((V, D))
    dhidden = backward(1.0, forward(depths, embed, head, hidden, tokens, document)[2]).dhidden_BTD
    assert ((np.abs(dhidden[:, : T - 1]).max(axis=-1) > 0) == counted).all()


@BOTH
def test_every_gradient_of_two_depths_agrees_with_central_differences(case, rng, check_gradients, forward, backward):
    embed, head, hidden, tokens, document = case
    depths, blocks = make_depths(rng, 2)
    _, _, cache = forward(depths, embed, head, hidden, tokens, document, 0.7)
    d = backward(1.0, cache)
    arrays = {"hidden": hidden, "embed": embed, "head": head}
    gradients = dict(zip(arrays, d[:3]))
    for k in range(2):
        used = MODULE if forward is mtp_loss_forward else ("shared_head_norm",)
        arrays |= {f"{n}{k}": getattr(depths[k].weights, n) for n in used}
        gradients |= {f"{n}{k}": getattr(d.dweights[k], n) for n in used}
        arrays |= {f"{n}{k}": getattr(blocks[k], n) for n in BLOCK}
        gradients |= {f"{n}{k}": getattr(d.dblocks[k], n) for n in BLOCK}
    check_gradients(lambda: forward(depths, embed, head, hidden, tokens, document, 0.7)[0], arrays, gradients)


def test_in_the_chain_the_second_depth_teaches_the_first(case, rng):
    embed, head, hidden, tokens, _ = case
    depths, _ = make_depths(rng, 2)
    both = mtp_loss_backward(1.0, mtp_loss_forward(depths, embed, head, hidden, tokens, weight=2.0)[2])
    alone = mtp_loss_backward(1.0, mtp_loss_forward(depths[:1], embed, head, hidden, tokens, weight=1.0)[2])
    assert np.abs(both.dweights[0].eh_proj - alone.dweights[0].eh_proj).max() > 1e-4
    both = parallel_loss_backward(1.0, parallel_loss_forward(depths, embed, head, hidden, tokens, weight=2.0)[2])
    alone = parallel_loss_backward(1.0, parallel_loss_forward(depths[:1], embed, head, hidden, tokens, weight=1.0)[2])
    np.testing.assert_array_equal(both.dweights[0].shared_head_norm, alone.dweights[0].shared_head_norm)


def test_the_chain_reads_the_tokens_in_between_and_the_parallel_heads_do_not(case, rng):
    embed, head, hidden, tokens, _ = case
    depths, _ = make_depths(rng, 2)
    other = embed + rng.standard_normal(embed.shape)
    blind = [parallel_loss_forward(depths, e, head, hidden, tokens)[1] for e in (embed, other)]
    assert blind[0] == blind[1]
    moved = np.subtract(
        mtp_loss_forward(depths, other, head, hidden, tokens)[1],
        mtp_loss_forward(depths, embed, head, hidden, tokens)[1],
    )
    assert (np.abs(moved) > 1e-3).all()


def test_the_gradient_scales_with_the_weight_and_is_nothing_without_depths(case, rng):
    embed, head, hidden, tokens, _ = case
    depths, _ = make_depths(rng, 2)
    small = mtp_loss_backward(1.0, mtp_loss_forward(depths, embed, head, hidden, tokens, weight=0.1)[2])
    large = mtp_loss_backward(1.0, mtp_loss_forward(depths, embed, head, hidden, tokens, weight=0.3)[2])
    np.testing.assert_allclose(3 * small.dhidden_BTD, large.dhidden_BTD, rtol=1e-12)
    loss, losses, cache = mtp_loss_forward([], embed, head, hidden, tokens)
    assert (loss, losses) == (0.0, [])
    assert not mtp_loss_backward(1.0, cache).dhidden_BTD.any()


def test_equal_tokens_add_up_in_the_embedding_gradient(rng):
    tokens, dx = np.array([[3, 1, 3], [1, 3, 0]]), rng.standard_normal((2, 3, 2))
    want = np.zeros((5, 2))
    np.add.at(want, tokens, dx)
    np.testing.assert_allclose(scatter_rows(dx, tokens, 5), want, rtol=1e-14)


def test_the_shortest_window_has_one_row_and_a_shorter_one_is_refused(case, rng):
    embed, head, hidden, tokens, _ = case
    depths, _ = make_depths(rng, 1)
    assert mtp_loss_forward(depths, embed, head, hidden[:, :2], tokens[:, :3])[0] > 0
    with pytest.raises(ValueError, match="needs at least 3"):
        mtp_loss_forward(depths, embed, head, hidden[:, :1], tokens[:, :2])
    with pytest.raises(ValueError, match="the last is only a target"):
        mtp_loss_forward(depths, embed, head, hidden, tokens[:, :-1])
