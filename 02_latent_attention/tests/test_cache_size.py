"""The arithmetic equals the bytes of a real cache, and the numbers of the papers."""

import pytest
from cache_size import (
    LLAMA_405B,
    QWEN_72B,
    V3,
    cache_bytes_per_token,
    cache_values_per_layer,
    count_grouped_query,
    count_latent,
    count_multi_head,
    fp8_latent_bytes_per_layer,
    tokens_that_fit,
)
from decoupled_rope import MLAConfig, MLAWeights, decoupled_attention_forward
from grouped_query_attention import GroupedQueryWeights, grouped_query_forward
from kv_cache import TokenCache


def test_the_released_model_keeps_576_values_per_layer_and_70272_bytes_per_token():
    assert cache_values_per_layer(V3) == 576
    assert cache_bytes_per_token(V3) == 70_272
    assert fp8_latent_bytes_per_layer(V3) == 656


def test_other_released_models():
    assert cache_bytes_per_token(LLAMA_405B) == 516_096
    assert cache_bytes_per_token(QWEN_72B) == 327_680


def test_the_ratios_of_the_papers():
    assert count_multi_head(V3) == 32_768
    assert round(count_multi_head(V3) / count_latent(V3), 1) == 56.9
    assert count_latent(V3) / count_grouped_query(1, 128) == 2.25  # V2, Table 1: equal to GQA with 2.25 groups


def test_the_calculator_equals_the_bytes_of_a_real_latent_cache(rng):
    config = MLAConfig(11, 3, kv_lora_rank=7, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=13)
    n_layers, n_tokens, weights = 3, 5, MLAWeights.init(rng, config)
    caches = [TokenCache(17) for _ in range(n_layers)]
    for past in caches:
        decoupled_attention_forward(rng.standard_normal((1, n_tokens, 11)), weights, config, past=past)
    counted = cache_bytes_per_token({**vars(config), "num_hidden_layers": n_layers}, bytes_per_value=8)
    assert sum(past.nbytes for past in caches) == n_tokens * counted


def test_the_calculator_equals_the_bytes_of_a_real_grouped_cache(rng):
    weights, caches = GroupedQueryWeights.init(rng, D=7, H=6, J=2, K=5, U=5), [TokenCache(5), TokenCache(5)]
    for past in caches:
        grouped_query_forward(rng.standard_normal((1, 3, 7)), weights, past)
    config = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 5}
    assert sum(past.nbytes for past in caches) == 3 * cache_bytes_per_token(config, bytes_per_value=8)
    assert count_multi_head(config) == 3 * cache_values_per_layer(config)


def test_a_token_more_than_fits_does_not_fit():
    memory = 1000 * cache_bytes_per_token(V3)
    assert (tokens_that_fit(V3, memory), tokens_that_fit(V3, memory - 1)) == (1000, 999)


def test_missing_keys_and_tiles_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="positive integers for qk_rope_head_dim"):
        cache_values_per_layer({"kv_lora_rank": 512})
    with pytest.raises(ValueError, match="positive integers for num_key_value_heads, head_dim"):
        cache_values_per_layer({})
    with pytest.raises(ValueError, match="tile=100 does not divide kv_lora_rank=512"):
        fp8_latent_bytes_per_layer(V3, tile=100)
