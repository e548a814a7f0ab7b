"""Multi-head attention: the reshape, the independence of the heads, and the gradients of four matrices."""

from dataclasses import replace

import numpy as np
import pytest
from causal_attention import attend_causally_forward
from multi_head_attention import AttentionWeights, merge_heads, multi_head_backward, multi_head_forward, split_heads
from self_attention import SelfAttentionWeights, self_attend_forward

# (B, S, D, H, K, U)
SIZES = [(2, 5, 7, 3, 2, 11), (1, 3, 5, 2, 7, 1), (3, 1, 2, 5, 1, 3), (1, 1, 1, 1, 1, 1)]


def draw(rng, B, S, D, H, K, U):
    return AttentionWeights.init(rng, D, H, K, U), rng.normal(size=(B, S, D)), rng.normal(size=(B, S, D))


def test_a_head_gets_neighbouring_numbers_of_each_token():
    counted = np.arange(12).reshape(1, 2, 6)
    assert split_heads(counted, 2).tolist() == [[[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]]


def test_merging_undoes_splitting(rng):
    joined = rng.normal(size=(2, 5, 21))
    assert split_heads(joined, 3).shape == (2, 3, 5, 7)
    assert np.array_equal(merge_heads(split_heads(joined, 3)), joined)


def test_one_head_is_causal_self_attention_and_a_product(rng):
    weights, hidden, _ = draw(rng, 2, 5, 7, 1, 3, 2)
    single = SelfAttentionWeights(weights.q_proj, weights.k_proj, weights.v_proj)
    want = self_attend_forward(hidden, single, attend_causally_forward)[0] @ weights.o_proj.T
    np.testing.assert_allclose(multi_head_forward(hidden, weights, 1)[0], want, rtol=1e-12)


def test_the_layer_is_the_sum_of_its_heads(rng):
    """Concatenate and project, or project each head by its own columns of W_O and add: the same thing."""
    H, K, U = 3, 2, 11
    weights, hidden, _ = draw(rng, 2, 5, 7, H, K, U)
    total = np.zeros_like(hidden)
    for h in range(H):
        rows, columns = slice(h * K, (h + 1) * K), slice(h * U, (h + 1) * U)
        head = AttentionWeights(
            weights.q_proj[rows], weights.k_proj[rows], weights.v_proj[columns], weights.o_proj[:, columns]
        )
        total += multi_head_forward(hidden, head, 1)[0]
    np.testing.assert_allclose(multi_head_forward(hidden, weights, H)[0], total, rtol=1e-10, atol=1e-12)


def test_heads_may_trade_places_if_their_weights_do(rng):
    H, K, U = 3, 2, 5
    weights, hidden, _ = draw(rng, 2, 5, 7, H, K, U)
    order = [2, 0, 1]

    def move(matrix, width):
        return matrix.reshape(H, width, -1)[order].reshape(H * width, -1)

    moved = AttentionWeights(
        move(weights.q_proj, K), move(weights.k_proj, K), move(weights.v_proj, U), move(weights.o_proj.T, U).T
    )
    np.testing.assert_allclose(
        multi_head_forward(hidden, moved, H)[0], multi_head_forward(hidden, weights, H)[0], rtol=1e-10, atol=1e-12
    )


def test_the_sequences_of_a_batch_do_not_see_each_other(rng):
    weights, hidden, _ = draw(rng, 2, 5, 7, 3, 2, 11)
    out, _ = multi_head_forward(hidden, weights, 3)
    np.testing.assert_allclose(multi_head_forward(hidden[1:], weights, 3)[0], out[1:], rtol=1e-12, atol=1e-14)


def test_a_changed_token_changes_nothing_before_it(rng):
    weights, hidden, _ = draw(rng, 1, 5, 7, 3, 2, 11)
    out, _ = multi_head_forward(hidden, weights, 3)
    hidden[:, 3] += 1.0
    assert np.array_equal(multi_head_forward(hidden, weights, 3)[0][:, :3], out[:, :3])


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
def test_the_gradient_agrees_with_central_differences(sizes, rng, check_gradients):
    weights, hidden, dout = draw(rng, *sizes)
    dhidden, dweights = multi_head_backward(dout, multi_head_forward(hidden, weights, sizes[3])[1])
    check_gradients(
        lambda: np.sum(dout * multi_head_forward(hidden, weights, sizes[3])[0]),
        {"hidden": hidden, **vars(weights)},
        {"hidden": dhidden, **vars(dweights)},
    )


def test_it_equals_the_module_of_pytorch_with_the_same_weights(rng):
    """torch.nn.MultiheadAttention stacks q, k, v in one matrix and has K = U = D / H."""
    torch = pytest.importorskip("torch")
    H, K = 3, 5
    weights, hidden, dout = draw(rng, 2, 7, H * K, H, K, K)
    out, cache = multi_head_forward(hidden, weights, H)  # V3 Eq. (11)
    dhidden, dweights = multi_head_backward(dout, cache)
    module = torch.nn.MultiheadAttention(H * K, H, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.tensor(np.concatenate([weights.q_proj, weights.k_proj, weights.v_proj])))
        module.out_proj.weight.copy_(torch.tensor(weights.o_proj))
    x = torch.tensor(hidden, requires_grad=True)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)  # True means masked there
    want, _ = module(x, x, x, attn_mask=future, need_weights=False)
    want.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dhidden, x.grad.numpy(), rtol=1e-10, atol=1e-12)
    stacked = np.concatenate([dweights.q_proj, dweights.k_proj, dweights.v_proj])
    np.testing.assert_allclose(stacked, module.in_proj_weight.grad.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dweights.o_proj, module.out_proj.weight.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_weights_that_do_not_fit_are_refused_with_their_numbers(rng):
    weights, hidden, _ = draw(rng, 2, 5, 7, 3, 2, 11)
    with pytest.raises(ValueError, match="4 heads do not divide a width of 6; make it 8"):
        multi_head_forward(hidden, weights, 4)
    with pytest.raises(ValueError, match=r"shape \(5, 7\); pass \[B, S, D\]"):
        multi_head_forward(hidden[0], weights, 3)
    with pytest.raises(ValueError, match="hidden has width 6"):
        multi_head_forward(hidden[..., :6], weights, 3)
    with pytest.raises(ValueError, match=r"o_proj \[D, H U\]"):
        multi_head_forward(hidden, replace(weights, o_proj=weights.o_proj.T), 3)
