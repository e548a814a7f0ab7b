"""Bytes that decoding keeps per token: multi-head, grouped-query, multi-query and latent attention, for any config.

    cd 02_latent_attention && python cache_size.py

Notebook: cache_size.ipynb. Source: arXiv:2405.04434, Table 1; arXiv:2505.09343 (70.272 KB per token for V3).
A config is a dictionary with the keys of a released config.json. Counting has no gradient.
"""

from collections.abc import Mapping

V3 = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
LLAMA_405B = {"num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128}
QWEN_72B = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}


def read_keys(config: Mapping, *names: str) -> list[int]:
    """Return the values of the keys; ValueError names those that are missing or not positive."""
    wrong = [name for name in names if not isinstance(config.get(name), int) or config[name] < 1]
    if wrong:
        raise ValueError(f"the config needs positive integers for {', '.join(wrong)}; it has {sorted(config)}")
    return [config[name] for name in names]


def count_multi_head(config: Mapping) -> int:
    """Values per token and layer of multi-head attention at the same head widths: a key and a value for every head."""
    if "kv_lora_rank" in config:
        H, K, U = read_keys(config, "num_attention_heads", "qk_nope_head_dim", "v_head_dim")
        return H * (K + U)
    H, K = read_keys(config, "num_attention_heads", "head_dim")
    return 2 * H * K


def count_grouped_query(n_kv_heads: int, head_dim: int) -> int:
    """Values per token and layer with `n_kv_heads` keys and values of the same width; 1 head is multi-query."""
    return 2 * n_kv_heads * head_dim


def count_latent(config: Mapping) -> int:
    """Values per token and layer of MLA: the latent and, beside it, the one rotary key. No factor 2, no heads."""
    C, R = read_keys(config, "kv_lora_rank", "qk_rope_head_dim")
    return C + R


def cache_values_per_layer(config: Mapping) -> int:
    """Values per token and layer that this model really keeps, by the kind of attention that its config describes."""
    if "kv_lora_rank" in config:
        return count_latent(config)
    J, head_dim = read_keys(config, "num_key_value_heads", "head_dim")
    return count_grouped_query(J, head_dim)


def cache_bytes_per_token(config: Mapping, bytes_per_value: float = 2) -> float:
    """Bytes per token of the whole model: values per layer, times layers, times bytes of a value (BF16: 2)."""
    (L,) = read_keys(config, "num_hidden_layers")
    return L * cache_values_per_layer(config) * bytes_per_value


def fp8_latent_bytes_per_layer(config: Mapping, tile: int = 128) -> int:
    """Bytes per token and layer of a latent in FP8 with one FP32 scale per tile; the rotary key stays BF16 (V3: 656).

    Raises:
        ValueError: the tiles do not fit the latent.
    """
    C, R = read_keys(config, "kv_lora_rank", "qk_rope_head_dim")
    if C % tile:
        raise ValueError(f"tile={tile} does not divide kv_lora_rank={C}; choose a divisor")
    return C + 4 * (C // tile) + 2 * R


def tokens_that_fit(config: Mapping, memory_bytes: float, bytes_per_value: float = 2) -> int:
    """Tokens of cache that fit into a memory, over all sequences together."""
    return int(memory_bytes // cache_bytes_per_token(config, bytes_per_value))


def main() -> None:
    """The table of V3 under four kinds of attention, then other models, then what fits."""
    L = V3["num_hidden_layers"]
    rows = [
        ("multi-head", "128 heads * (128 + 128)", count_multi_head(V3)),
        ("grouped, 8 heads", "2 * 8 * 128", count_grouped_query(8, 128)),
        ("multi-query", "2 * 128", count_grouped_query(1, 128)),
        ("latent (MLA)", "512 + 64", count_latent(V3)),
    ]
    print("DeepSeek-V3 under four kinds of attention, BF16")
    print(f" {'attention':<17} | {'values per token and layer':<32} | bytes per token, {L} layers")
    for name, formula, values in rows:
        print(f" {name:<17} | {formula + ' = ' + format(values, ','):<32} | {2 * L * values:>12,}")
    print(f"MLA keeps {count_multi_head(V3) / count_latent(V3):.1f} times less than multi-head attention;")
    print(f"grouped-query attention of that size would have {count_latent(V3) / 256:.2f} key-value heads.")

    print("\nreleased models, bytes per token in BF16")
    for name, config in [("DeepSeek-V3", V3), ("Llama-3.1-405B", LLAMA_405B), ("Qwen2.5-72B", QWEN_72B)]:
        fit = tokens_that_fit(config, 16 * 2**30)
        print(f" {name:<15} {cache_bytes_per_token(config):>9,.0f}    16 GiB hold {fit:>9,} tokens")
    print(f" V3 with an FP8 latent: {fp8_latent_bytes_per_layer(V3)} bytes per layer instead of {2 * count_latent(V3)}")


if __name__ == "__main__":
    main()
