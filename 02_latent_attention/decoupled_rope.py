"""The whole multi-head latent attention layer as released: latent keys and values, and a rotary part beside them.

    cd 02_latent_attention && python decoupled_rope.py

Notebook: decoupled_rope.ipynb. Source: arXiv:2412.19437, Eq. (1)-(11); arXiv:2405.04434, Sec. 2.1.3.
Letters: B batch, S queries, T keys, D model width, H heads, K content key width, R rotary width, U value width,
C key-value latent width, Q query latent width, X any joined width (K + R, K + U, H U).

This is the expanded form, for training and prefill; absorbed_attention.py is the same function for decoding.
"""

from dataclasses import dataclass

import numpy as np
from kv_cache import (
    TokenCache,
    attend_backward,
    attend_forward,
    gradient_error,
    merge_heads,
    refuse_misfit,
    split_heads,
    weight_gradient,
)
from rotary_embedding import rope_angles, rotate_pairs_backward, rotate_pairs_forward
from yarn import refuse_scaling, rotary_frequencies, softmax_scale


@dataclass(frozen=True)
class MLAConfig:
    """The keys of the released config.json that this layer reads. q_lora_rank None: one plain query projection."""

    hidden_size: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rms_norm_eps: float = 1e-6

    def __post_init__(self):
        for name in ("hidden_size", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; use 1 or more")
        if self.qk_rope_head_dim < 2 or self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim} cannot be cut into pairs; use an even number")
        if self.rope_scaling is not None:
            refuse_scaling(self.rope_scaling)

    @property
    def scale(self) -> float:
        """One scale over the joint width of content and rope."""
        return softmax_scale(self.qk_nope_head_dim + self.qk_rope_head_dim, self.rope_scaling)

    def angles(self, positions: np.ndarray) -> np.ndarray:
        """Rotary angles [1 or B, S, R / 2] of positions [S] or [B, S]."""
        frequencies_P = rotary_frequencies(self.qk_rope_head_dim, self.rope_theta, self.rope_scaling)
        return rope_angles(np.atleast_2d(positions), frequencies_P)


def weight_shapes(config: MLAConfig) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of the released tensors of one layer, by name."""
    c, H = config, config.num_attention_heads
    query = H * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    shapes = {
        "kv_a_proj_with_mqa": (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size),
        "kv_a_layernorm": (c.kv_lora_rank,),
        "kv_b_proj": (H * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        "o_proj": (c.hidden_size, H * c.v_head_dim),
    }
    if c.q_lora_rank is None:
        return {**shapes, "q_proj": (query, c.hidden_size)}
    low_rank = {"q_a_proj": (c.q_lora_rank, c.hidden_size), "q_a_layernorm": (c.q_lora_rank,)}
    return {**shapes, **low_rank, "q_b_proj": (query, c.q_lora_rank)}


@dataclass(frozen=True)
class MLAWeights:
    """Released names, [out, in]. Rows of q_b_proj (or q_proj) per head: K content, R rotary; of kv_a_proj_with_mqa:
    C latent, R rotary key; of kv_b_proj per head: K content key, U value. Gradients use the same class."""

    kv_a_proj_with_mqa: np.ndarray
    kv_a_layernorm: np.ndarray
    kv_b_proj: np.ndarray
    o_proj: np.ndarray
    q_a_proj: np.ndarray | None = None
    q_a_layernorm: np.ndarray | None = None
    q_b_proj: np.ndarray | None = None
    q_proj: np.ndarray | None = None

    @classmethod
    def init(cls, rng: np.random.Generator, config: MLAConfig, std: float | None = None) -> "MLAWeights":
        """Draw weights of standard deviation `std` (0.006 in V3; 1 / sqrt(fan-in) when None), norms at 1."""
        drawn = {
            name: np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) * (std or shape[1] ** -0.5)
            for name, shape in weight_shapes(config).items()
        }
        return cls(**drawn)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights that exist, by released name."""
        return {name: array for name, array in vars(self).items() if array is not None}


def normalize_latent_forward(x_BSC: np.ndarray, weight_C: np.ndarray, eps: float):
    """RMSNorm of a latent: y = g x / sqrt(mean(x^2) + eps)."""
    inverse_rms_BS1 = 1 / np.sqrt(np.mean(x_BSC * x_BSC, axis=-1, keepdims=True) + eps)
    unit_BSC = x_BSC * inverse_rms_BS1
    return weight_C * unit_BSC, (unit_BSC, inverse_rms_BS1, weight_C)


def normalize_latent_backward(dy_BSC: np.ndarray, cache) -> tuple[np.ndarray, np.ndarray]:
    """Return dx and the gradient of the norm's weight: what points along the unit vector does not get through."""
    unit_BSC, inverse_rms_BS1, weight_C = cache
    dunit_BSC = dy_BSC * weight_C
    along_BS1 = np.mean(dunit_BSC * unit_BSC, axis=-1, keepdims=True)
    return inverse_rms_BS1 * (dunit_BSC - unit_BSC * along_BS1), (dy_BSC * unit_BSC).sum((0, 1))


def project_queries_forward(x_BSD: np.ndarray, weights: MLAWeights, config: MLAConfig, angles_BSP: np.ndarray):
    """Return queries [B, H, S, K + R] with the rotary part turned, through the query latent if there is one."""
    K = config.qk_nope_head_dim
    if config.q_lora_rank is None:
        inner_BSQ, norm_cache, last_proj = x_BSD, None, weights.q_proj
    else:
        raw_BSQ = x_BSD @ weights.q_a_proj.T  # V3 Eq. (6)
        inner_BSQ, norm_cache = normalize_latent_forward(raw_BSQ, weights.q_a_layernorm, config.rms_norm_eps)
        last_proj = weights.q_b_proj
    q_BHSX = split_heads(inner_BSQ @ last_proj.T, config.num_attention_heads)  # V3 Eq. (7)
    rope_BHSR, _ = rotate_pairs_forward(q_BHSX[..., K:], angles_BSP[:, None])  # V3 Eq. (8)
    return np.concatenate([q_BHSX[..., :K], rope_BHSR], axis=-1), (x_BSD, inner_BSQ, norm_cache)  # V3 Eq. (9)


def project_queries_backward(dq_BHSX: np.ndarray, cache, weights: MLAWeights, config: MLAConfig, angles_BSP):
    """Return dx and the gradients of the query weights by name."""
    x_BSD, inner_BSQ, norm_cache = cache
    K = config.qk_nope_head_dim
    drope_BHSR = rotate_pairs_backward(dq_BHSX[..., K:], angles_BSP[:, None])
    dq_BSX = merge_heads(np.concatenate([dq_BHSX[..., :K], drope_BHSR], axis=-1))
    if norm_cache is None:
        return dq_BSX @ weights.q_proj, {"q_proj": weight_gradient(dq_BSX, x_BSD)}
    draw_BSQ, dnorm_Q = normalize_latent_backward(dq_BSX @ weights.q_b_proj, norm_cache)
    return draw_BSQ @ weights.q_a_proj, {
        "q_a_proj": weight_gradient(draw_BSQ, x_BSD),
        "q_a_layernorm": dnorm_Q,
        "q_b_proj": weight_gradient(dq_BSX, inner_BSQ),
    }


def compress_tokens_forward(x_BSD: np.ndarray, weights: MLAWeights, config: MLAConfig, angles_BSP: np.ndarray):
    """Return what is worth caching: the normed latent [B, S, C] and one turned rotary key [B, S, R].

    The rotary key comes from the hidden state beside the latent; it is shared by all heads and not normed.
    """
    raw_BSX = x_BSD @ weights.kv_a_proj_with_mqa.T  # V3 Eq. (1)
    raw_latent_BSC, raw_rope_BSR = np.split(raw_BSX, [config.kv_lora_rank], axis=-1)
    latent_BSC, norm_cache = normalize_latent_forward(raw_latent_BSC, weights.kv_a_layernorm, config.rms_norm_eps)
    k_rope_BSR, _ = rotate_pairs_forward(raw_rope_BSR, angles_BSP)  # V3 Eq. (3)
    return latent_BSC, k_rope_BSR, (x_BSD, norm_cache)


def compress_tokens_backward(dlatent_BSC: np.ndarray, dk_rope_BSR: np.ndarray, cache, weights: MLAWeights, angles_BSP):
    """Return dx and the gradients of the compressing weights by name."""
    x_BSD, norm_cache = cache
    draw_latent_BSC, dnorm_C = normalize_latent_backward(dlatent_BSC, norm_cache)
    draw_rope_BSR = rotate_pairs_backward(dk_rope_BSR, angles_BSP)
    draw_BSX = np.concatenate([draw_latent_BSC, draw_rope_BSR], axis=-1)
    grads = {"kv_a_proj_with_mqa": weight_gradient(draw_BSX, x_BSD), "kv_a_layernorm": dnorm_C}
    return draw_BSX @ weights.kv_a_proj_with_mqa, grads


def refuse_wrong_layer(x_BSD: np.ndarray, weights: MLAWeights, config: MLAConfig) -> None:
    """Raise ValueError unless hidden states and every weight have the shapes that the config asks for."""
    refuse_misfit(x_BSD, config.hidden_size)
    have, want = {name: array.shape for name, array in weights.arrays().items()}, weight_shapes(config)
    wrong = [n for n in sorted(have.keys() | want.keys()) if have.get(n) != want.get(n)]
    if wrong:
        listed = "; ".join(f"{n} is {have.get(n, 'missing')}, expected {want.get(n, 'none')}" for n in wrong)
        raise ValueError(f"the weights do not fit the config: {listed}")


def place_tokens(x_BSD: np.ndarray, config: MLAConfig, positions, past: TokenCache | None) -> np.ndarray:
    """Angles of the new tokens: behind the past by default, or at `positions` [S] or [B, S]."""
    B, S, _ = x_BSD.shape
    if positions is None:
        positions = np.arange(S) + (past.n_tokens if past is not None else 0)
    positions = np.asarray(positions)
    if positions.shape not in ((S,), (B, S)):
        raise ValueError(f"positions of shape {positions.shape} for {B} sequences of {S} tokens; give [S] or [B, S]")
    return config.angles(positions)


def decoupled_attention_forward(
    x_BSD: np.ndarray, weights: MLAWeights, config: MLAConfig, positions=None, past: TokenCache | None = None
):
    """Compute the layer in expanded form: keys and values of every head are built from the latents.

        score = (q_nope . k_nope + q_rope . k_rope) scale          (one scale over both parts)

    Args:
        positions: of the new tokens, [S] or [B, S]; by default they follow the past.
        past: latents and rotary keys of earlier tokens; the new ones are appended.
    """
    refuse_wrong_layer(x_BSD, weights, config)
    K, H = config.qk_nope_head_dim, config.num_attention_heads
    angles_BSP = place_tokens(x_BSD, config, positions, past)
    q_BHSX, query_cache = project_queries_forward(x_BSD, weights, config, angles_BSP)
    latent_BTC, k_rope_BTR, token_cache = compress_tokens_forward(x_BSD, weights, config, angles_BSP)
    if past is not None:
        latent_BTC, k_rope_BTR = past.append(latent_BTC, k_rope_BTR)
    kv_BHTX = split_heads(latent_BTC @ weights.kv_b_proj.T, H)  # V3 Eq. (2), V3 Eq. (5)
    shared_BHTR = np.broadcast_to(k_rope_BTR[:, None], (len(x_BSD), H, *k_rope_BTR.shape[1:]))
    k_BHTX = np.concatenate([kv_BHTX[..., :K], shared_BHTR], axis=-1)  # V3 Eq. (4)
    o_BHSU, core = attend_forward(q_BHSX, k_BHTX, kv_BHTX[..., K:], config.scale)  # V3 Eq. (10)
    merged_BSX = merge_heads(o_BHSU)
    cache = (weights, config, angles_BSP, query_cache, token_cache, latent_BTC, core, merged_BSX)
    return merged_BSX @ weights.o_proj.T, cache  # V3 Eq. (11)


def decoupled_attention_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, MLAWeights]:
    """Return dx and the gradients of the weights; what was cached before counts as constant.

    The one rotary key was read by H heads, so its gradient is their sum.
    """
    weights, config, angles_BSP, query_cache, token_cache, latent_BTC, core, merged_BSX = cache
    K, S = config.qk_nope_head_dim, dy_BSD.shape[1]
    do_BHSU = split_heads(dy_BSD @ weights.o_proj, config.num_attention_heads)
    dq_BHSX, dk_BHTX, dv_BHTU = attend_backward(do_BHSU, core)
    dk_rope_BTR = dk_BHTX[..., K:].sum(axis=1)
    dkv_BTX = merge_heads(np.concatenate([dk_BHTX[..., :K], dv_BHTU], axis=-1))
    dlatent_BTC = dkv_BTX @ weights.kv_b_proj
    dx_query_BSD, query_grads = project_queries_backward(dq_BHSX, query_cache, weights, config, angles_BSP)
    dx_token_BSD, token_grads = compress_tokens_backward(
        dlatent_BTC[:, -S:], dk_rope_BTR[:, -S:], token_cache, weights, angles_BSP
    )
    grads = {"kv_b_proj": weight_gradient(dkv_BTX, latent_BTC), "o_proj": weight_gradient(dy_BSD, merged_BSX)}
    return dx_query_BSD + dx_token_BSD, MLAWeights(**query_grads, **token_grads, **grads)


def split_scores(cache) -> tuple[np.ndarray, np.ndarray]:
    """Return the content scores and the rope scores [B, H, S, T], scaled: their sum is what enters the softmax."""
    _, config, *_, core, _ = cache
    q_BHSX, k_BHTX, _, scale, _ = core
    K = config.qk_nope_head_dim
    content_BHST = scale * (q_BHSX[..., :K] @ k_BHTX[..., :K].swapaxes(-1, -2))
    return content_BHST, scale * (q_BHSX[..., K:] @ k_BHTX[..., K:].swapaxes(-1, -2))


def main() -> None:
    """Why plain RoPE would break the absorption, in numbers; the layer's shapes; the gradient check."""
    rng = np.random.default_rng(0)
    w_uk_KC, w_q_KD = rng.standard_normal((4, 3)), rng.standard_normal((4, 6))
    print("RoPE between W_Q and W_UK: the matrix to absorb would be W_Q^T R(n - m) W_UK, one for every distance")
    for distance in (0, 1, 2):
        turned = rotate_pairs_forward(np.eye(4), np.tile(distance * np.array([1.0, 0.1]), (4, 1)))[0]
        print(f"  m - n = {distance}: first entries {(w_q_KD.T @ turned @ w_uk_KC)[0].round(3)}")

    config = MLAConfig(7, 3, kv_lora_rank=5, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, q_lora_rank=6)
    weights = MLAWeights.init(rng, config)
    x_BSD, dy_BSD = rng.standard_normal((2, 4, 7)), rng.standard_normal((2, 4, 7))
    past = TokenCache(4)
    _, cache = decoupled_attention_forward(x_BSD, weights, config, past=past)
    content_BHST, rope_BHST = split_scores(cache)
    print("\nscores of head 0, token 3:  content", content_BHST[0, 0, 3].round(2), " rope", rope_BHST[0, 0, 3].round(2))
    print(f"cached per token: {past.nbytes // 8 // 8} values = {config.kv_lora_rank} + {config.qk_rope_head_dim}")
    dx, dweights = decoupled_attention_backward(dy_BSD, cache)

    def loss() -> float:
        return float((decoupled_attention_forward(x_BSD, weights, config)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx                  {gradient_error(loss, x_BSD, dx):.1e}")
    for name, array in weights.arrays().items():
        print(f"  d{name:<18} {gradient_error(loss, array, getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
