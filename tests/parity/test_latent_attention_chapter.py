"""Chapter 02 against PyTorch on the same weights: forward and every gradient, 1e-10 relative in float64.

The MLA layer is the package's own module, in both its forms. The attentions that the package does not have (multi-head,
multi-query, grouped-query, latent without positions) are compared with scaled_dot_product_attention and autograd, the
rotation with Hugging Face's.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from absorbed_attention import absorbed_attention_backward, absorbed_attention_forward
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_backward, decoupled_attention_forward
from grouped_query_attention import GroupedQueryWeights, grouped_query_backward, grouped_query_forward
from kv_cache import MultiHeadWeights, TokenCache, cached_attention_backward, cached_attention_forward
from latent_attention import LatentWeights, latent_attention_backward, latent_attention_forward
from multi_query_attention import MultiQueryWeights, multi_query_backward, multi_query_forward
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    rope_angles,
    rotate_halves_forward,
    rotate_pairs_backward,
    rotate_pairs_forward,
)
from torch.nn import functional as F
from yarn import V3_SCALING, rotary_frequencies
from yarn import softmax_scale as chapter_scale

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.attention import MultiHeadLatentAttention
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.rope import rope_frequencies, rotation_at
from deepseek_v3.model.rope import softmax_scale as package_scale
from utils.gradient_check import relative_error

TOLERANCE = 1e-10  # two float64 computations in another order: some 1e-15 a product, and depth
B, S = 2, 5
LOW_RANK = MLAConfig(
    hidden_size=11,
    num_attention_heads=3,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=4,
    v_head_dim=2,
    q_lora_rank=6,
)
PLAIN_QUERY = replace(LOW_RANK, q_lora_rank=None)
EXTENDED = replace(LOW_RANK, rope_scaling={**V3_SCALING, "original_max_position_embeddings": 64})
WIDE_VALUE = replace(LOW_RANK, v_head_dim=13)
ONE_OF_EACH = MLAConfig(1, 1, kv_lora_rank=1, qk_nope_head_dim=1, qk_rope_head_dim=2, v_head_dim=1, q_lora_rank=1)
CONFIGS = [LOW_RANK, PLAIN_QUERY, EXTENDED, WIDE_VALUE, ONE_OF_EACH]
NAMES = ["low rank", "plain query", "YaRN", "wide value", "size 1"]
FORMS = {
    "expanded": (decoupled_attention_forward, decoupled_attention_backward),
    "absorbed": (absorbed_attention_forward, absorbed_attention_backward),
}


@pytest.fixture(autouse=True)
def float64_everywhere():
    """The package computes angles in FP32 unless the default dtype says otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def hold_equal(ours, theirs):
    """Compare arrays of ours with tensors of PyTorch, by name."""
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(ours[name], tensor.detach().numpy()) for name, tensor in theirs.items()}
    assert max(errors.values()) < TOLERANCE, errors


def package_config(config):
    """The same layer as the package's configuration: a dense model of one layer."""
    return ModelConfig(
        vocab_size=17, intermediate_size=3, num_hidden_layers=1, first_k_dense_replace=1, **asdict(config)
    )


def draw_layer(config, rng):
    """Weights with norms that are not 1, the package's module with the same weights, and hidden states."""
    weights = MLAWeights.init(rng, config)
    norms = {n: 1 + 0.3 * rng.standard_normal(a.shape) for n, a in weights.arrays().items() if n.endswith("layernorm")}
    weights = replace(weights, **norms)
    module = MultiHeadLatentAttention(package_config(config))
    module.load_state_dict({f"{name}.weight": torch.tensor(array) for name, array in weights.arrays().items()})
    return weights, module, rng.standard_normal((B, S, config.hidden_size))


def rotation(config, positions):
    """The package's rotation at these positions."""
    return rotation_at(torch.as_tensor(np.asarray(positions)), rope_frequencies(package_config(config)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_the_layer_is_the_one_of_the_package_forward_and_all_gradients(config, form, rng):
    weights, module, x = draw_layer(config, rng)
    dy, leaf = rng.standard_normal(x.shape), torch.tensor(x, requires_grad=True)
    want = module(leaf, rotation(config, np.arange(S)))
    want.backward(torch.tensor(dy))
    forward, backward = FORMS[form]
    y, cache = forward(x, weights, config)
    dx, dweights = backward(dy, cache)
    gradients = {name.removesuffix(".weight"): p.grad for name, p in module.named_parameters()}
    hold_equal({"y": y}, {"y": want})  # V3 Eq. (9), V3 Eq. (10), V3 Eq. (11)
    if config is ONE_OF_EACH:  # a latent of width 1 is only a sign: these two gradients are rounding, and eps
        for name in ("q_a_proj", "kv_a_proj_with_mqa"):
            np.testing.assert_allclose(getattr(dweights, name), gradients.pop(name), rtol=1e-6, atol=1e-12)
        assert relative_error(dx, leaf.grad.numpy()) < 1e-6
    else:
        hold_equal({"dx": dx}, {"dx": leaf.grad})
    hold_equal({name: getattr(dweights, name) for name in gradients}, gradients)


@pytest.mark.parametrize("form", FORMS)
def test_positions_of_each_sequence_are_those_of_the_package(form, rng):
    weights, module, x = draw_layer(EXTENDED, rng)
    positions = np.array([np.arange(S) + 3, [0, 2, 30, 31, 500]])
    want = module(torch.tensor(x), rotation(EXTENDED, positions))
    hold_equal({"y": FORMS[form][0](x, weights, EXTENDED, positions)[0]}, {"y": want})


@pytest.mark.parametrize("config", CONFIGS[:4], ids=NAMES[:4])
def test_decoding_over_the_cache_is_that_of_the_package_and_so_is_the_cache(config, rng):
    weights, module, x = draw_layer(config, rng)
    theirs, ours = LatentCache.dense(package_config(config), B, S, layers=1, dtype=torch.float64), TokenCache(S)
    for start, stop in [(0, 2), (2, 3), (3, 5)]:
        mask = torch.tensor(np.arange(stop) <= np.arange(start, stop)[:, None])
        chunk, turn = torch.tensor(x[:, start:stop]), rotation(config, np.arange(start, stop))
        want = module(chunk, turn, theirs.place(stop - start)._replace(mask_ST=mask))
        theirs.advance(stop - start)
        got = absorbed_attention_forward(x[:, start:stop], weights, config, past=ours)[0]
        hold_equal({"y": got}, {"y": want})
    hold_equal({"cache": np.concatenate(ours.rooms, axis=-1)}, {"cache": theirs.store.latent_LPTW[0]})
    assert ours.nbytes == B * S * theirs.store.bytes_per_token


def test_frequencies_and_scale_of_the_released_models_are_those_of_the_package():
    for preset in ("v3-671b", "v2-lite-16b"):
        config = ModelConfig.preset(preset)
        ours = rotary_frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        assert relative_error(ours, rope_frequencies(config).numpy()) < 1e-14
        assert np.isclose(chapter_scale(config.qk_head_dim, config.rope_scaling), package_scale(config), rtol=1e-14)


def as_leaves(weights, names):
    """Copy the named weights to tensors that collect gradients."""
    return {name: torch.tensor(getattr(weights, name), requires_grad=True) for name in names}


def heads(x_BSX, n_heads):
    """[B, S, H * K] -> [B, H, S, K] for a tensor."""
    return x_BSX.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def attend_in_torch(x, w, n_heads, n_kv_heads):
    """Plain attention on tensors: project, share heads, attend causally, project back."""
    q, k, v = (
        heads(x @ w["q_proj"].T, n_heads),
        heads(x @ w["k_proj"].T, n_kv_heads),
        heads(x @ w["v_proj"].T, n_kv_heads),
    )
    k, v = (t.repeat_interleave(n_heads // n_kv_heads, 1) for t in (k, v))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return o.transpose(1, 2).flatten(2) @ w["o_proj"].T


def latent_in_torch(x, w, n_heads, key_width):
    """Latent attention without positions on tensors."""
    q, kv = heads(x @ w["q_proj"].T, n_heads), heads(x @ w["kv_a_proj"].T @ w["kv_b_proj"].T, n_heads)
    o = F.scaled_dot_product_attention(q, kv[..., :key_width], kv[..., key_width:], is_causal=True)
    return o.transpose(1, 2).flatten(2) @ w["o_proj"].T


D, H, K, U, C = 7, 6, 5, 3, 4
PLAIN = ("q_proj", "k_proj", "v_proj", "o_proj")
ATTENTIONS = {
    "multi-head": (
        lambda rng: MultiHeadWeights.init(rng, D, H, K, U),
        cached_attention_forward,
        cached_attention_backward,
        lambda x, w: attend_in_torch(x, w, H, H),
        PLAIN,
    ),
    "multi-query": (
        lambda rng: MultiQueryWeights.init(rng, D, H, K, U),
        multi_query_forward,
        multi_query_backward,
        lambda x, w: attend_in_torch(x, w, H, 1),
        PLAIN,
    ),
    "grouped-query": (
        lambda rng: GroupedQueryWeights.init(rng, D, H, 2, K, U),
        grouped_query_forward,
        grouped_query_backward,
        lambda x, w: attend_in_torch(x, w, H, 2),
        PLAIN,
    ),
    "latent": (
        lambda rng: LatentWeights.init(rng, D, H, K, U, C),
        latent_attention_forward,
        latent_attention_backward,
        lambda x, w: latent_in_torch(x, w, H, K),
        ("q_proj", "kv_a_proj", "kv_b_proj", "o_proj"),
    ),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_other_attention_equals_autograd(kind, rng):
    init, forward, backward, in_torch, names = ATTENTIONS[kind]
    weights, x, dy = init(rng), rng.standard_normal((B, S, D)), rng.standard_normal((B, S, D))
    leaves, leaf = as_leaves(weights, names), torch.tensor(x, requires_grad=True)
    want = in_torch(leaf, leaves)
    want.backward(torch.tensor(dy))
    y, cache = forward(x, weights)
    dx, dweights = backward(dy, cache)
    ours = {"y": y, "dx": dx, **{name: getattr(dweights, name) for name in names}}
    hold_equal(ours, {"y": want, "dx": leaf.grad, **{name: t.grad for name, t in leaves.items()}})


def test_the_rotation_is_hugging_faces_on_interleaved_weights(rng):
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    R = 14
    q, k, dq = rng.standard_normal((3, B, H, S, R))
    angles = rope_angles(np.arange(S) + 2, inverse_frequencies(R))
    twice = torch.tensor(np.concatenate([angles, angles], -1))[None]
    leaf = torch.tensor(q, requires_grad=True)
    want_q, want_k = modeling.apply_rotary_pos_emb_interleave(leaf, torch.tensor(k), twice.cos(), twice.sin())
    ours_q, ours_k = rotate_pairs_forward(q, angles)[0], rotate_pairs_forward(k, angles)[0]
    order = half_split_order(R)  # Hugging Face leaves the rotated pairs in half-split order; the scores are the same
    hold_equal({"q": ours_q[..., order], "k": ours_k[..., order]}, {"q": want_q, "k": want_k})
    hold_equal({"score": ours_q @ ours_k.swapaxes(-1, -2)}, {"score": want_q @ want_k.mT})
    want_q.backward(torch.tensor(dq[..., order]))
    hold_equal({"dq": rotate_pairs_backward(dq, angles)}, {"dq": leaf.grad})
    wrong = rotate_halves_forward(q, angles)[0] @ rotate_halves_forward(k, angles)[0].swapaxes(-1, -2)
    assert relative_error(wrong, (want_q @ want_k.mT).detach().numpy()) > 0.1  # the control: no permutation, no match


def test_the_extended_frequencies_are_hugging_faces():
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(rope_parameters={**V3_SCALING, "rope_type": "yarn", "rope_theta": 10000.0})
    frequencies, magnitude = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert (
        relative_error(rotary_frequencies(64, 10000.0, V3_SCALING), frequencies.double().numpy()) < 1e-6
    )  # FP32 there
    assert magnitude == 1.0
