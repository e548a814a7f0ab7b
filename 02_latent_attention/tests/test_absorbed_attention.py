"""Absorbing is a rearrangement: same outputs, same gradients, same cache, other costs."""

from dataclasses import replace

import numpy as np
import pytest
from absorbed_attention import (
    V3,
    absorbed_attention_backward,
    absorbed_attention_forward,
    count_absorbed,
    count_expanded,
    count_kept,
    crossing_queries,
    split_up_projection,
)
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_backward, decoupled_attention_forward
from kv_cache import TokenCache
from yarn import V3_SCALING

B, S = 2, 5
CONFIG = MLAConfig(
    hidden_size=11,
    num_attention_heads=3,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=4,
    v_head_dim=13,
    q_lora_rank=6,
)
PLAIN_QUERY = replace(CONFIG, q_lora_rank=None)
EXTENDED = replace(CONFIG, rope_scaling={**V3_SCALING, "original_max_position_embeddings": 64})
TINY = MLAConfig(
    1, 1, kv_lora_rank=1, qk_nope_head_dim=1, qk_rope_head_dim=2, v_head_dim=1, q_lora_rank=1, rms_norm_eps=0.5
)
SMALL = MLAConfig(5, 2, kv_lora_rank=3, qk_nope_head_dim=3, qk_rope_head_dim=4, v_head_dim=1, q_lora_rank=2)


def draw(rng, config, B=B, S=S):
    weights = MLAWeights.init(rng, config)
    norms = {n: 1 + 0.3 * rng.standard_normal(a.shape) for n, a in weights.arrays().items() if n.endswith("layernorm")}
    shape = (B, S, config.hidden_size)
    return replace(weights, **norms), rng.standard_normal(shape), rng.standard_normal(shape)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, q_lora_rank=None), TINY])
def test_gradients_agree_with_central_differences(config, rng, check_gradients):
    weights, x, dy = draw(rng, config, 2, 3)
    dx, dweights = absorbed_attention_backward(dy, absorbed_attention_forward(x, weights, config)[1])
    check_gradients(
        lambda: float((absorbed_attention_forward(x, weights, config)[0] * dy).sum()),
        {"x": x, **weights.arrays()},
        {"x": dx, **dweights.arrays()},
    )


@pytest.mark.parametrize("config", [CONFIG, PLAIN_QUERY, EXTENDED, TINY])
def test_both_forms_give_the_same_outputs_and_gradients(config, rng):
    weights, x, dy = draw(rng, config)
    (y, cache), (want, want_cache) = (
        form(x, weights, config) for form in (absorbed_attention_forward, decoupled_attention_forward)
    )
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-13)
    (dx, dweights), (want_dx, want_dweights) = (
        absorbed_attention_backward(dy, cache),
        decoupled_attention_backward(dy, want_cache),
    )
    np.testing.assert_allclose(dx, want_dx, rtol=0, atol=1e-12)
    for name, gradient in dweights.arrays().items():
        np.testing.assert_allclose(gradient, getattr(want_dweights, name), rtol=0, atol=1e-12, err_msg=name)


def test_prefill_expanded_then_decode_absorbed_over_one_cache(rng):
    weights, x, _ = draw(rng, EXTENDED)
    whole, _ = decoupled_attention_forward(x, weights, EXTENDED)
    past = TokenCache(S)
    outputs = [decoupled_attention_forward(x[:, :2], weights, EXTENDED, past=past)[0]]
    outputs += [absorbed_attention_forward(x[:, s : s + 1], weights, EXTENDED, past=past)[0] for s in range(2, S)]
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, rtol=0, atol=1e-12)
    assert past.nbytes == 8 * B * S * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim)


def test_every_split_into_two_chunks_equals_one_shot(rng):
    weights, x, _ = draw(rng, CONFIG)
    whole, _ = absorbed_attention_forward(x, weights, CONFIG)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [absorbed_attention_forward(p, weights, CONFIG, past=past)[0] for p in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-12)


def test_each_head_of_kv_b_proj_has_its_key_rows_first(rng):
    weight = rng.standard_normal((3 * (5 + 13), 7))
    w_uk, w_uv = split_up_projection(weight, CONFIG)
    assert np.array_equal(w_uk[1], weight[18:23])
    assert np.array_equal(w_uv[1], weight[23:36])


def test_float32_stays_float32(rng):
    weights, x, dy = draw(rng, EXTENDED)
    single = MLAWeights(**{n: a.astype("f4") for n, a in weights.arrays().items()})
    y, cache = absorbed_attention_forward(x.astype("f4"), single, EXTENDED)
    dx, dweights = absorbed_attention_backward(dy.astype("f4"), cache)
    assert {y.dtype, dx.dtype, *(a.dtype for a in dweights.arrays().values())} == {np.dtype("f4")}


def test_the_costs_of_the_released_model_by_hand():
    T, size = 1000, 128 * 256 * 512
    assert count_absorbed(V3, 1, T) == (2 * size + 2 * 128 * T * (576 + 512), size + 576 * T)
    assert count_kept(V3, 1, T) == (2 * size + 2 * 128 * T * (192 + 128), size + 40960 * T)
    assert count_expanded(V3, 1, T) == (
        2 * size * T + 2 * 128 * T * (192 + 128),
        size + 576 * T + 2 * T * 128 * 256,
    )


@pytest.mark.parametrize("T", [97, 4096, 131072])
def test_the_forms_cross_where_the_formula_says(T):
    at = crossing_queries(V3, T)
    below, above = int(at), int(at) + 1
    assert count_absorbed(V3, below, T).flops <= count_expanded(V3, below, T).flops
    assert count_absorbed(V3, above, T).flops > count_expanded(V3, above, T).flops


def test_a_latent_too_narrow_to_cross_says_so():
    with pytest.raises(ValueError, match="absorbed costs less for every length"):
        crossing_queries(replace(V3, kv_lora_rank=128), 4096)
