"""Latent attention without positions: keys and values are one narrow latent, expanded per head when they are read.

    cd 02_latent_attention && python latent_attention.py

Notebook: latent_attention.ipynb. Source: arXiv:2405.04434, Eq. (9)-(11) (low-rank key-value joint compression);
arXiv:2412.19437, Eq. (1), (2), (5).
Letters: B batch, S queries, T keys, D model width, H heads, K key width, U value width, C key-value latent width.
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


@dataclass(frozen=True)
class LatentWeights:
    """q_proj [H K, D], kv_a_proj [C, D], kv_b_proj [H (K + U), C] (each head: K key rows, then U value rows),
    o_proj [D, H U]."""

    q_proj: np.ndarray
    kv_a_proj: np.ndarray
    kv_b_proj: np.ndarray
    o_proj: np.ndarray
    n_heads: int

    @classmethod
    def init(cls, rng: np.random.Generator, D: int, H: int, K: int, U: int, C: int) -> "LatentWeights":
        """Draw weights of standard deviation 1 / sqrt(fan-in)."""
        shapes = [(H * K, D), (C, D), (H * (K + U), C), (D, H * U)]
        return cls(*(rng.standard_normal(s) / s[1] ** 0.5 for s in shapes), n_heads=H)

    @property
    def key_width(self) -> int:
        """K, from the rows of q_proj."""
        return self.q_proj.shape[0] // self.n_heads


def latent_attention_forward(x_BSD: np.ndarray, weights: LatentWeights, past: TokenCache | None = None):
    """Compress each token to C values, keep only those, expand them to the keys and values of every head.

    c = W_DKV h;   [k_h ; v_h] = W_UKV,h c;   o_h,s = sum_t softmax_t(q_h,s . k_h,t / sqrt(K)) v_h,t
    """
    refuse_misfit(x_BSD, weights.q_proj.shape[1])
    K = weights.key_width
    q_BHSK = split_heads(x_BSD @ weights.q_proj.T, weights.n_heads)
    latent_BTC = x_BSD @ weights.kv_a_proj.T  # V3 Eq. (1)
    if past is not None:
        (latent_BTC,) = past.append(latent_BTC)
    kv_BHTX = split_heads(latent_BTC @ weights.kv_b_proj.T, weights.n_heads)  # V3 Eq. (2), V3 Eq. (5)
    o_BHSU, core = attend_forward(q_BHSK, kv_BHTX[..., :K], kv_BHTX[..., K:], K**-0.5)
    merged_BSX = merge_heads(o_BHSU)
    return merged_BSX @ weights.o_proj.T, (x_BSD, weights, core, latent_BTC, merged_BSX)


def latent_attention_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, LatentWeights]:
    """Return dx and the gradients of the weights.

    The latent feeds every head twice, as a key and as a value: dc = sum_h (W_UK,h^T dk_h + W_UV,h^T dv_h).
    """
    x_BSD, weights, core, latent_BTC, merged_BSX = cache
    dq_BHSK, dk_BHTK, dv_BHTU = attend_backward(split_heads(dy_BSD @ weights.o_proj, weights.n_heads), core)
    dq_BSX = merge_heads(dq_BHSK)
    dkv_BTX = merge_heads(np.concatenate([dk_BHTK, dv_BHTU], axis=-1))
    dlatent_BSC = (dkv_BTX @ weights.kv_b_proj)[:, -x_BSD.shape[1] :]
    return dq_BSX @ weights.q_proj + dlatent_BSC @ weights.kv_a_proj, LatentWeights(
        q_proj=weight_gradient(dq_BSX, x_BSD),
        kv_a_proj=weight_gradient(dlatent_BSC, x_BSD),
        kv_b_proj=weight_gradient(dkv_BTX, latent_BTC),
        o_proj=weight_gradient(dy_BSD, merged_BSX),
        n_heads=weights.n_heads,
    )


def score_from_latent(q_BHSK: np.ndarray, latent_BTC: np.ndarray, weights: LatentWeights) -> np.ndarray:
    """Score queries against latents without ever building a key.

    q_h . (W_UK,h c) = (W_UK,h^T q_h) . c        (move the matrix to the side of which there is only one: the query)
    """
    K = weights.key_width
    w_uk_HKC = weights.kv_b_proj.reshape(weights.n_heads, -1, latent_BTC.shape[-1])[:, :K]
    return K**-0.5 * (q_BHSK @ w_uk_HKC) @ latent_BTC[:, None].swapaxes(-1, -2)


def compress_projections(k_proj: np.ndarray, v_proj: np.ndarray, n_heads: int, rank: int):
    """Factor the key and value projections of a multi-head layer through one latent, as well as rank C allows.

    [W_K ; W_V] ~ W_UKV W_DKV        (singular value decomposition: no other rank-C pair is closer)

    Returns:
        kv_a_proj [C, D], kv_b_proj [H (K + U), C]: the two factors; exact once C reaches the rank of the stack.
    Raises:
        ValueError: the rank exceeds what the matrices can have.
    """
    D = k_proj.shape[1]
    k_HKD, v_HUD = k_proj.reshape(n_heads, -1, D), v_proj.reshape(n_heads, -1, D)
    stack_XD = np.concatenate([k_HKD, v_HUD], axis=1).reshape(-1, D)
    if not 1 <= rank <= min(stack_XD.shape):
        raise ValueError(f"rank={rank} for a {stack_XD.shape} matrix; choose 1 to {min(stack_XD.shape)}")
    left, strength, right = np.linalg.svd(stack_XD, full_matrices=False)
    return right[:rank], left[:, :rank] * strength[:rank]


def main() -> None:
    """One latent by hand, the identity that makes it pay, then the gradient check."""
    weights = LatentWeights(
        q_proj=np.array([[1.0, 0.0], [0.0, 1.0]]),
        kv_a_proj=np.array([[1.0, 2.0]]),
        kv_b_proj=np.array([[1.0], [3.0], [2.0], [-1.0]]),
        o_proj=np.eye(2),
        n_heads=2,
    )
    past = TokenCache(2)
    x_BSD = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    _, (_, _, core, latent_BTC, _) = latent_attention_forward(x_BSD, weights, past)
    print("two tokens (1,0), (0,1); W_DKV = (1 2): latents", latent_BTC[0, :, 0])
    print("  head 0: keys 1c =", core[1][0, 0, :, 0], " values 3c =", core[2][0, 0, :, 0])
    print("  head 1: keys 2c =", core[1][0, 1, :, 0], " values -c =", core[2][0, 1, :, 0])
    print(f"  kept: {past.nbytes // 8} numbers for 2 tokens; multi-head attention would keep 8")

    rng = np.random.default_rng(0)
    weights = LatentWeights.init(rng, D=7, H=3, K=2, U=5, C=4)
    x_BSD, dy_BSD = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    _, cache = latent_attention_forward(x_BSD, weights)
    q, k = cache[2][0], cache[2][1]
    gap = np.abs(2**-0.5 * q @ k.swapaxes(-1, -2) - score_from_latent(q, cache[3], weights)).max()
    print(f"\nscores with keys and scores straight from the latent differ by {gap:.0e}")
    dx, dweights = latent_attention_backward(dy_BSD, cache)

    def loss() -> float:
        return float((latent_attention_forward(x_BSD, weights)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx         {gradient_error(loss, x_BSD, dx):.1e}")
    for name in ("q_proj", "kv_a_proj", "kv_b_proj", "o_proj"):
        print(f"  d{name:<9} {gradient_error(loss, getattr(weights, name), getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
