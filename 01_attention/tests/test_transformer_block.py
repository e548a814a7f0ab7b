"""The block: pre-norm, two additions, and a gradient that always has the straight way home."""

from dataclasses import replace

import numpy as np
import pytest
from multi_head_attention import multi_head_forward
from rms_norm import rms_norm_forward
from swiglu import swiglu_forward
from transformer_block import (
    BlockSizes,
    BlockWeights,
    block_backward,
    block_forward,
    list_arrays,
    stack_backward,
    stack_forward,
    tour_block,
)

SMALL = BlockSizes(hidden_size=7, n_heads=3, key_dim=2, value_dim=5, intermediate_size=11)
ONES = BlockSizes(1, 1, 1, 1, 1)


def draw(rng, sizes, n_rows, n_tokens):
    """A block whose norm weights are no longer one, so that a forgotten weight shows."""
    weights = BlockWeights.init(rng, sizes)
    D = sizes.hidden_size
    weights = replace(weights, input_layernorm=rng.normal(size=D), post_attention_layernorm=rng.normal(size=D))
    shape = (n_rows, n_tokens, D)
    return weights, rng.normal(size=shape), rng.normal(size=shape)


def test_the_arrays_have_the_released_names(rng):
    assert list(list_arrays(BlockWeights.init(rng, SMALL))) == [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]


def test_readers_that_say_nothing_leave_the_stream_alone(rng):
    weights, hidden, dout = draw(rng, SMALL, 2, 5)
    silent = replace(
        weights,
        self_attn=replace(weights.self_attn, o_proj=0 * weights.self_attn.o_proj),
        mlp=replace(weights.mlp, down_proj=0 * weights.mlp.down_proj),
    )
    out, cache = block_forward(hidden, silent, 3)
    assert np.array_equal(out, hidden)
    assert np.array_equal(block_backward(dout, cache)[0], dout)  # the straight way home


def test_the_block_is_two_additions_of_what_a_normed_reader_says(rng):
    weights, hidden, _ = draw(rng, SMALL, 2, 5)
    between = hidden + multi_head_forward(rms_norm_forward(hidden, weights.input_layernorm)[0], weights.self_attn, 3)[0]
    normed = rms_norm_forward(between, weights.post_attention_layernorm)[0]
    want = between + swiglu_forward(normed, weights.mlp)[0]
    np.testing.assert_allclose(block_forward(hidden, weights, 3)[0], want, rtol=1e-12)  # V3 Fig. 2


def test_what_a_reader_adds_does_not_depend_on_the_length_of_the_stream(rng):
    """Pre-norm: hidden and 1000 hidden get the same answer. A norm behind the addition would break that."""
    weights, hidden, _ = draw(rng, SMALL, 2, 5)
    added = [block_forward(c * hidden, weights, 3)[1].stream[1] - c * hidden for c in (1.0, 1000.0)]
    np.testing.assert_allclose(added[1], added[0], rtol=1e-4, atol=1e-6)  # eps = 1e-6 matters a little at length one


def test_a_changed_token_changes_nothing_before_it_however_deep_the_stack(rng):
    layers = [draw(rng, SMALL, 1, 1)[0] for _ in range(5)]
    hidden = rng.normal(size=(1, 5, 7))
    out, _ = stack_forward(hidden, layers, 3)
    hidden[:, 3] += 1.0
    moved, _ = stack_forward(hidden, layers, 3)
    assert np.array_equal(moved[:, :3], out[:, :3])
    assert np.abs(moved[:, 3:] - out[:, 3:]).min(axis=-1).max() > 0


@pytest.mark.parametrize(
    ("sizes", "n_rows", "n_tokens"), [(SMALL, 2, 5), (SMALL, 1, 1), (ONES, 2, 3)], ids=lambda s: str(s).replace(" ", "")
)
def test_the_gradient_of_a_block_agrees_with_central_differences(sizes, n_rows, n_tokens, rng, check_gradients):
    weights, hidden, dout = draw(rng, sizes, n_rows, n_tokens)
    dhidden, dweights = block_backward(dout, block_forward(hidden, weights, sizes.n_heads)[1])
    check_gradients(
        lambda: np.sum(dout * block_forward(hidden, weights, sizes.n_heads)[0]),
        {"hidden": hidden, **list_arrays(weights)},
        {"hidden": dhidden, **list_arrays(dweights)},
    )


def test_the_gradient_of_a_stack_agrees_with_central_differences(rng, check_gradients):
    layers = [draw(rng, SMALL, 1, 1)[0] for _ in range(3)]
    hidden, dout = rng.normal(size=(1, 3, 7)), rng.normal(size=(1, 3, 7))
    dhidden, dlayers = stack_backward(dout, stack_forward(hidden, layers, 3)[1])
    arrays, gradients = {"hidden": hidden}, {"hidden": dhidden}
    for i in (0, 2):
        arrays |= list_arrays(layers[i], f"layers.{i}.")
        gradients |= list_arrays(dlayers[i], f"layers.{i}.")
    check_gradients(lambda: np.sum(dout * stack_forward(hidden, layers, 3)[0]), arrays, gradients)


def test_it_equals_autograd_with_the_parts_of_pytorch(rng):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    weights, hidden, dout = draw(rng, SMALL, 2, 5)
    out, cache = block_forward(hidden, weights, 3)
    dhidden, dweights = block_backward(dout, cache)
    t = {k: torch.tensor(v, requires_grad=True) for k, v in {"hidden": hidden, **list_arrays(weights)}.items()}
    x = F.rms_norm(t["hidden"], (7,), t["input_layernorm"], eps=1e-6)
    q, k, v = ((x @ t[f"self_attn.{n}_proj"].T).unflatten(-1, (3, -1)).transpose(1, 2) for n in "qkv")
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    stream = t["hidden"] + heads.transpose(1, 2).flatten(2) @ t["self_attn.o_proj"].T
    x = F.rms_norm(stream, (7,), t["post_attention_layernorm"], eps=1e-6)
    gated = F.silu(x @ t["mlp.gate_proj"].T) * (x @ t["mlp.up_proj"].T)
    want = stream + gated @ t["mlp.down_proj"].T
    want.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    for name, got in {"hidden": dhidden, **list_arrays(dweights)}.items():
        np.testing.assert_allclose(got, t[name].grad.numpy(), rtol=1e-10, atol=1e-11)


def test_the_tour_names_every_station_with_its_shape(rng):
    weights, hidden, _ = draw(rng, SMALL, 2, 5)
    tour = tour_block(block_forward(hidden, weights, 3)[1])
    letters = {"B": 2, "S": 5, "D": 7, "H": 3, "K": 2, "U": 5, "F": 11, "HU": 15}
    assert len(tour) == 12
    for what, axes, shape in tour:
        assert shape == tuple(letters[axis] for axis in axes.split()), what


def test_heads_that_do_not_divide_are_refused(rng):
    weights, hidden, _ = draw(rng, SMALL, 2, 5)
    with pytest.raises(ValueError, match="4 heads do not divide a width of 6"):
        block_forward(hidden, weights, 4)
