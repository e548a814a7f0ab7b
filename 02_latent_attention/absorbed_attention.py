"""The same layer for decoding: fold the up-projections away and attend to the latents themselves.

    cd 02_latent_attention && python absorbed_attention.py

Notebook: absorbed_attention.ipynb. Source: arXiv:2405.04434, Sec. 2.1.2; arXiv:2412.19437, Eq. (1)-(11).
Letters: B batch, S queries, T keys, D model width, H heads, K content key width, R rotary width, U value width,
C key-value latent width, X the joined width C + R.

    q_h . (W_UK,h c) = (W_UK,h^T q_h) . c               the key matrix moves to the query, of which there are few
    sum_t p_t (W_UV,h c_t) = W_UV,h (sum_t p_t c_t)     the value matrix moves behind the sum

What remains is multi-query attention with one key of width C + R and one value of width C, both read from the cache.
"""

from typing import NamedTuple

import numpy as np
from decoupled_rope import (
    MLAConfig,
    MLAWeights,
    compress_tokens_backward,
    compress_tokens_forward,
    decoupled_attention_forward,
    place_tokens,
    project_queries_backward,
    project_queries_forward,
    refuse_wrong_layer,
)
from kv_cache import (
    TokenCache,
    attend_backward,
    attend_forward,
    gradient_error,
    merge_heads,
    split_heads,
    weight_gradient,
)


def split_up_projection(kv_b_proj: np.ndarray, config: MLAConfig) -> tuple[np.ndarray, np.ndarray]:
    """View kv_b_proj as W_UK [H, K, C] and W_UV [H, U, C]: per head K key rows, then U value rows."""
    per_head_HXC = kv_b_proj.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    return per_head_HXC[:, : config.qk_nope_head_dim], per_head_HXC[:, config.qk_nope_head_dim :]


def absorbed_attention_forward(
    x_BSD: np.ndarray, weights: MLAWeights, config: MLAConfig, positions=None, past: TokenCache | None = None
):
    """Compute the layer without ever building a key or a value of a head.

        score = (W_UK^T q_nope . c + q_rope . k_rope) scale,   scale = (K + R)^(-1/2) mscale^2

    The scale stays that of the joint head width: absorbing is a rearrangement, the scores are the same numbers.
    Arguments as in `decoupled_attention_forward`; the two forms may share one cache.
    """
    refuse_wrong_layer(x_BSD, weights, config)
    K = config.qk_nope_head_dim
    angles_BSP = place_tokens(x_BSD, config, positions, past)
    q_BHSX, query_cache = project_queries_forward(x_BSD, weights, config, angles_BSP)
    latent_BTC, k_rope_BTR, token_cache = compress_tokens_forward(x_BSD, weights, config, angles_BSP)
    if past is not None:
        latent_BTC, k_rope_BTR = past.append(latent_BTC, k_rope_BTR)
    w_uk_HKC, w_uv_HUC = split_up_projection(weights.kv_b_proj, config)
    q_latent_BHSC = q_BHSX[..., :K] @ w_uk_HKC
    q_joint_BHSX = np.concatenate([q_latent_BHSC, q_BHSX[..., K:]], axis=-1)
    k_joint_B1TX = np.concatenate([latent_BTC, k_rope_BTR], axis=-1)[:, None]
    context_BHSC, core = attend_forward(q_joint_BHSX, k_joint_B1TX, latent_BTC[:, None], config.scale)
    merged_BSX = merge_heads(context_BHSC @ w_uv_HUC.swapaxes(-1, -2))
    cache = (weights, config, angles_BSP, query_cache, token_cache, q_BHSX, context_BHSC, core, merged_BSX)
    return merged_BSX @ weights.o_proj.T, cache


def absorbed_attention_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, MLAWeights]:
    """Return dx and the gradients of the weights, the same as those of the expanded form.

    The latent is read as a key and as a value by every head: its gradient is the sum of both over the heads.
    """
    weights, config, angles_BSP, query_cache, token_cache, q_BHSX, context_BHSC, core, merged_BSX = cache
    K, C, S = config.qk_nope_head_dim, config.kv_lora_rank, dy_BSD.shape[1]
    w_uk_HKC, w_uv_HUC = split_up_projection(weights.kv_b_proj, config)
    do_BHSU = split_heads(dy_BSD @ weights.o_proj, config.num_attention_heads)
    dw_uv_HUC = (do_BHSU.swapaxes(-1, -2) @ context_BHSC).sum(axis=0)
    dq_joint_BHSX, dk_joint_BHTX, dv_BHTC = attend_backward(do_BHSU @ w_uv_HUC, core)
    dq_latent_BHSC = dq_joint_BHSX[..., :C]
    dw_uk_HKC = (q_BHSX[..., :K].swapaxes(-1, -2) @ dq_latent_BHSC).sum(axis=0)
    dq_nope_BHSK = dq_latent_BHSC @ w_uk_HKC.swapaxes(-1, -2)
    dq_BHSX = np.concatenate([dq_nope_BHSK, dq_joint_BHSX[..., C:]], axis=-1)
    dlatent_BTC = (dk_joint_BHTX[..., :C] + dv_BHTC).sum(axis=1)
    dk_rope_BTR = dk_joint_BHTX[..., C:].sum(axis=1)
    dx_query_BSD, query_grads = project_queries_backward(dq_BHSX, query_cache, weights, config, angles_BSP)
    dx_token_BSD, token_grads = compress_tokens_backward(
        dlatent_BTC[:, -S:], dk_rope_BTR[:, -S:], token_cache, weights, angles_BSP
    )
    dkv_b_proj = np.concatenate([dw_uk_HKC, dw_uv_HUC], axis=1).reshape(weights.kv_b_proj.shape)
    grads = {"kv_b_proj": dkv_b_proj, "o_proj": weight_gradient(dy_BSD, merged_BSX)}
    return dx_query_BSD + dx_token_BSD, MLAWeights(**query_grads, **token_grads, **grads)


class Cost(NamedTuple):
    """Multiply-adds counted as two operations, and values moved to or from memory, for one layer and one sequence."""

    flops: int
    values: int


def _core_flops(config: MLAConfig, S: int, T: int, key_width: int, value_width: int) -> int:
    """Scores and weighted sum of S queries with T keys in every head (no causal saving: S << T when it matters)."""
    return 2 * config.num_attention_heads * S * T * (key_width + value_width)


def _up_projection_size(config: MLAConfig) -> int:
    """Elements of kv_b_proj, which every form reads once; twice that is the work of expanding one token."""
    return config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim) * config.kv_lora_rank


def count_absorbed(config: MLAConfig, S: int, T: int) -> Cost:
    """Absorbed: the matrices are applied to S queries and S contexts; T latents and rotary keys are read."""
    C, R, size = config.kv_lora_rank, config.qk_rope_head_dim, _up_projection_size(config)
    return Cost(2 * S * size + _core_flops(config, S, T, C + R, C), size + T * (C + R))


def count_expanded(config: MLAConfig, S: int, T: int) -> Cost:
    """Expanded from the latent cache: T tokens are expanded; keys and values are written once and read once."""
    K, R, U, size = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, _up_projection_size(config)
    moved = T * (config.kv_lora_rank + R) + 2 * T * config.num_attention_heads * (K + U)
    return Cost(2 * T * size + _core_flops(config, S, T, K + R, U), size + moved)


def count_kept(config: MLAConfig, S: int, T: int) -> Cost:
    """Keep expanded keys and values instead of latents: S tokens are expanded, T keys of every head are read."""
    K, R, U, size = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, _up_projection_size(config)
    return Cost(2 * S * size + _core_flops(config, S, T, K + R, U), size + T * config.num_attention_heads * (K + R + U))


def crossing_queries(config: MLAConfig, T: int) -> float:
    """Number of new tokens at which absorbed and expanded (from latents) cost the same operations.

    1 / S = 1 / T + 1 / S_inf,   S_inf = C (K + U) / (2 C - K - U)        (V3: S_inf = 170.7; below it, absorb)

    Raises:
        ValueError: a latent so narrow that the absorbed form is cheaper everywhere.
    """
    C, width = config.kv_lora_rank, config.qk_nope_head_dim + config.v_head_dim
    if width >= 2 * C:
        raise ValueError(f"2 kv_lora_rank = {2 * C} <= {width} = K + U: absorbed costs less for every length")
    return 1 / (1 / T + (2 * C - width) / (C * width))


V3 = MLAConfig(7168, 128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=1536)


def main() -> None:
    """The rearrangement by hand, equality of the forms, the cost of both, the gradient check."""
    q, w_uk, c = np.array([1.0, 2.0]), np.array([[1.0, 0.0], [3.0, 1.0]]), np.array([2.0, -1.0])
    print(f"q = (1,2), W_UK = (1 0; 3 1), c = (2,-1): key W_UK c = {w_uk @ c}, q . key = {q @ (w_uk @ c):.0f}")
    print(f"absorbed query W_UK^T q = {w_uk.T @ q}, with c: {(w_uk.T @ q) @ c:.0f}")

    rng = np.random.default_rng(0)
    config = MLAConfig(7, 3, kv_lora_rank=5, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, q_lora_rank=6)
    weights = MLAWeights.init(rng, config)
    x_BSD, dy_BSD = rng.standard_normal((2, 4, 7)), rng.standard_normal((2, 4, 7))
    y, cache = absorbed_attention_forward(x_BSD, weights, config)
    gap = np.abs(y - decoupled_attention_forward(x_BSD, weights, config)[0]).max()
    past = TokenCache(4)
    steps = [absorbed_attention_forward(x_BSD[:, s : s + 1], weights, config, past=past)[0] for s in range(4)]
    print(f"\nabsorbed against expanded: {gap:.0e}; token by token: {np.abs(y - np.concatenate(steps, 1)).max():.0e}")

    print("\nV3, one layer, one new token after T - 1 others (BF16)")
    print("      T | form     |      MFLOP |      MB | FLOP/byte")
    for T in (1024, 32768):
        for name, count in [("absorbed", count_absorbed), ("expanded", count_expanded), ("kept", count_kept)]:
            flops, values = count(V3, 1, T)
            print(
                f" {T:>6} | {name:<8} | {flops / 1e6:>10,.0f} | {2 * values / 1e6:>7,.0f} | {flops / 2 / values:>6.1f}"
            )
    print(f"absorbed needs fewer operations below {crossing_queries(V3, 32768):.1f} new tokens after 32768")
    dx, dweights = absorbed_attention_backward(dy_BSD, cache)

    def loss() -> float:
        return float((absorbed_attention_forward(x_BSD, weights, config)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx                  {gradient_error(loss, x_BSD, dx):.1e}")
    for name, array in weights.arrays().items():
        print(f"  d{name:<18} {gradient_error(loss, array, getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
