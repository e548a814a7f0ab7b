"""Chapter 01 against PyTorch on the same weights: forward and every gradient, 1e-10 relative in float64.

The norm and the gated MLP are the package's own modules. Attention is compared with PyTorch's
scaled_dot_product_attention and autograd, because the package has latent attention only (chapter 02's parity).
"""

import numpy as np
import pytest
import torch
from causal_attention import attend_causally_backward, attend_causally_forward, attend_masked_forward
from multi_head_attention import AttentionWeights, multi_head_backward, multi_head_forward
from rms_norm import rms_norm_backward, rms_norm_forward
from self_attention import (
    SelfAttentionWeights,
    attend_backward,
    attend_forward,
    self_attend_backward,
    self_attend_forward,
)
from swiglu import SwigluWeights, swiglu_backward, swiglu_forward
from torch.nn import functional as F
from transformer_block import BlockSizes, BlockWeights, list_arrays, stack_backward, stack_forward

from deepseek_v3.model.mlp import SwiGLU
from deepseek_v3.model.norm import RMSNorm
from utils.gradient_check import relative_error

TOLERANCE = 1e-10  # two float64 computations in another order: some 1e-15 a product, and depth


def hold_equal(pairs):
    """Compare arrays of ours with tensors of PyTorch, by name."""
    errors = {name: relative_error(ours, theirs.detach().numpy()) for name, (ours, theirs) in pairs.items()}
    assert max(errors.values()) < TOLERANCE, errors


def as_leaves(arrays):
    """Copy arrays to tensors that collect gradients."""
    return {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in arrays.items()}


def load_weights(module, arrays):
    """Give a module of the package the weights of the chapter: the same names, plus `.weight`."""
    module = module.double()
    module.load_state_dict({f"{name}.weight" if name else "weight": torch.tensor(a) for name, a in arrays.items()})
    return module


@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 11), (1, 2)])
def test_the_norm_is_the_one_of_the_package(shape, rng):
    x, weight, dy = rng.normal(size=shape), rng.normal(size=shape[-1]), rng.normal(size=shape)
    y, cache = rms_norm_forward(x, weight)
    dx, dweight = rms_norm_backward(dy, cache)
    module, leaf = load_weights(RMSNorm(shape[-1], 1e-6), {"": weight}), as_leaves({"x": x})["x"]
    want = module(leaf)
    want.backward(torch.tensor(dy))
    hold_equal({"y": (y, want), "dx": (dx, leaf.grad), "dweight": (dweight, module.weight.grad)})


@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 11), (1, 1)])
def test_the_gated_mlp_is_the_one_of_the_package(shape, rng):
    weights = SwigluWeights.init(rng, shape[-1], 13)
    x, dy = rng.normal(size=shape), rng.normal(size=shape)
    y, cache = swiglu_forward(x, weights)
    dx, dweights = swiglu_backward(dy, cache)
    module, leaf = load_weights(SwiGLU(shape[-1], 13), vars(weights)), as_leaves({"x": x})["x"]
    want = module(leaf)
    want.backward(torch.tensor(dy))
    gradients = {name: (d, getattr(module, name).weight.grad) for name, d in vars(dweights).items()}
    hold_equal({"y": (y, want), "dx": (dx, leaf.grad), **gradients})


# (axes in front, S, T, K, U)
SIZES = [((), 3, 5, 7, 2), ((2,), 3, 7, 5, 11), ((2, 3), 5, 5, 7, 3), ((), 1, 1, 1, 1), ((3,), 1, 5, 1, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: str(s).replace(" ", ""))
@pytest.mark.parametrize("kind", ["everything", "causal", "masked"])
def test_the_core_is_the_scaled_dot_product_attention_of_pytorch(sizes, kind, rng):
    front, S, T, K, U = sizes
    arrays = {
        name: rng.normal(size=(*front, n, width))
        for name, n, width in (("query", S, K), ("key", T, K), ("value", T, U))
    }
    mask = rng.random((S, T)) < 0.5
    mask[:, 0] = True
    if kind == "everything":
        out, cache = attend_forward(*arrays.values())
        mask[:] = True
    elif kind == "causal":
        out, cache = attend_causally_forward(*arrays.values())
        mask = np.tril(np.ones((S, T), dtype=bool), T - S)
    else:
        out, cache = attend_masked_forward(*arrays.values(), mask)
    dout = rng.normal(size=out.shape)
    gradients = (attend_causally_backward if kind == "causal" else attend_backward)(dout, cache)
    leaves = as_leaves(arrays)
    want = F.scaled_dot_product_attention(*leaves.values(), attn_mask=torch.tensor(mask))
    want.backward(torch.tensor(dout))
    pairs = {name: (ours, leaf.grad) for (name, leaf), ours in zip(leaves.items(), gradients)}
    hold_equal({"out": (out, want), **pairs})


def test_self_attention_with_its_projections_is_what_autograd_says(rng):
    weights, hidden, dout = SelfAttentionWeights.init(rng, 5, 3, 2), rng.normal(size=(7, 5)), rng.normal(size=(7, 2))
    out, cache = self_attend_forward(hidden, weights)
    dhidden, dweights = self_attend_backward(dout, cache)
    t = as_leaves({"hidden": hidden, **vars(weights)})
    want = F.scaled_dot_product_attention(*(t["hidden"] @ t[f"{name}_proj"].T for name in "qkv"))
    want.backward(torch.tensor(dout))
    gradients = {"hidden": dhidden, **vars(dweights)}
    hold_equal({"out": (out, want), **{name: (d, t[name].grad) for name, d in gradients.items()}})


def attend_with_pytorch(x, t, prefix, n_heads):
    """Multi-head causal attention in PyTorch's own parts."""
    q, k, v = ((x @ t[f"{prefix}{name}_proj"].T).unflatten(-1, (n_heads, -1)).transpose(1, 2) for name in "qkv")
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return heads.transpose(1, 2).flatten(2) @ t[f"{prefix}o_proj"].T


@pytest.mark.parametrize(("B", "S", "D", "H", "K", "U"), [(2, 5, 7, 3, 2, 11), (3, 1, 2, 5, 1, 3), (1, 1, 1, 1, 1, 1)])
def test_multi_head_attention_is_what_autograd_says(B, S, D, H, K, U, rng):
    weights = AttentionWeights.init(rng, D, H, K, U)
    hidden, dout = rng.normal(size=(B, S, D)), rng.normal(size=(B, S, D))
    out, cache = multi_head_forward(hidden, weights, H)  # V3 Eq. (11)
    dhidden, dweights = multi_head_backward(dout, cache)
    t = as_leaves({"hidden": hidden, **vars(weights)})
    want = attend_with_pytorch(t["hidden"], t, "", H)
    want.backward(torch.tensor(dout))
    gradients = {"hidden": dhidden, **vars(dweights)}
    hold_equal({"out": (out, want), **{name: (d, t[name].grad) for name, d in gradients.items()}})


def test_a_stack_of_blocks_is_what_autograd_says(rng):
    sizes = BlockSizes(hidden_size=7, n_heads=3, key_dim=2, value_dim=5, intermediate_size=11)
    layers = [BlockWeights.init(rng, sizes) for _ in range(3)]
    hidden, dout = rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 5, 7))
    out, caches = stack_forward(hidden, layers, 3)
    dhidden, dlayers = stack_backward(dout, caches)
    leaves = [as_leaves(list_arrays(weights)) for weights in layers]
    start = as_leaves({"hidden": hidden})["hidden"]
    stream = start
    for t in leaves:
        normed = F.rms_norm(stream, (7,), t["input_layernorm"], eps=1e-6)
        stream = stream + attend_with_pytorch(normed, t, "self_attn.", 3)
        normed = F.rms_norm(stream, (7,), t["post_attention_layernorm"], eps=1e-6)
        gated = F.silu(normed @ t["mlp.gate_proj"].T) * (normed @ t["mlp.up_proj"].T)
        stream = stream + gated @ t["mlp.down_proj"].T
    stream.backward(torch.tensor(dout))
    pairs = {"out": (out, stream), "hidden": (dhidden, start.grad)}
    for i, (t, dweights) in enumerate(zip(leaves, dlayers)):
        pairs |= {f"layers.{i}.{name}": (d, t[name].grad) for name, d in list_arrays(dweights).items()}
    hold_equal(pairs)
