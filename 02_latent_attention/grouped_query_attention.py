"""Grouped-query attention: one dial from multi-head (J = H) to multi-query (J = 1).

    cd 02_latent_attention && python grouped_query_attention.py

Notebook: grouped_query_attention.ipynb. Source: arXiv:2305.13245 (GQA).
Letters: B batch, S queries, T keys, D model width, H heads, J key-value heads (`num_key_value_heads`), K key width,
U value width.
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
class GroupedQueryWeights:
    """q_proj [H K, D], k_proj [J K, D], v_proj [J U, D], o_proj [D, H U]; H / J heads share one key and value."""

    q_proj: np.ndarray
    k_proj: np.ndarray
    v_proj: np.ndarray
    o_proj: np.ndarray
    n_heads: int
    n_kv_heads: int

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} heads do not divide into {self.n_kv_heads} key-value heads; "
                f"choose one of {[j for j in range(1, self.n_heads + 1) if self.n_heads % j == 0]}"
            )

    @classmethod
    def init(cls, rng: np.random.Generator, D: int, H: int, J: int, K: int, U: int) -> "GroupedQueryWeights":
        """Draw weights of standard deviation 1 / sqrt(fan-in)."""
        shapes = [(H * K, D), (J * K, D), (J * U, D), (D, H * U)]
        return cls(*(rng.standard_normal(s) / s[1] ** 0.5 for s in shapes), n_heads=H, n_kv_heads=J)


def share_heads_forward(x_BJTK: np.ndarray, n_readers: int) -> np.ndarray:
    """Give each key-value head to `n_readers` neighbouring query heads: 0 0 0 1 1 1, not 0 1 0 1 0 1."""
    return np.repeat(x_BJTK, n_readers, axis=1)


def share_heads_backward(dx_BHTK: np.ndarray, n_readers: int) -> np.ndarray:
    """Sum the gradients of the heads that read the same key-value head."""
    B, H, T, K = dx_BHTK.shape
    return dx_BHTK.reshape(B, H // n_readers, n_readers, T, K).sum(axis=2)


def grouped_query_forward(x_BSD: np.ndarray, weights: GroupedQueryWeights, past: TokenCache | None = None):
    """Attend with H query heads to J key-value heads; head h reads key-value head h // (H / J).

    Only the J heads are cached; the repetition happens when they are read.
    """
    refuse_misfit(x_BSD, weights.q_proj.shape[1])
    n_readers = weights.n_heads // weights.n_kv_heads
    q_BHSK = split_heads(x_BSD @ weights.q_proj.T, weights.n_heads)
    k_BJTK = split_heads(x_BSD @ weights.k_proj.T, weights.n_kv_heads)
    v_BJTU = split_heads(x_BSD @ weights.v_proj.T, weights.n_kv_heads)
    if past is not None:
        k_BJTK, v_BJTU = past.append(k_BJTK, v_BJTU)
    k_BHTK, v_BHTU = share_heads_forward(k_BJTK, n_readers), share_heads_forward(v_BJTU, n_readers)
    o_BHSU, core = attend_forward(q_BHSK, k_BHTK, v_BHTU, q_BHSK.shape[-1] ** -0.5)
    merged_BSX = merge_heads(o_BHSU)
    return merged_BSX @ weights.o_proj.T, (x_BSD, weights, core, merged_BSX)


def grouped_query_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, GroupedQueryWeights]:
    """Return dx and the gradients of the weights; what was cached before counts as constant."""
    x_BSD, weights, core, merged_BSX = cache
    S, n_readers = x_BSD.shape[1], weights.n_heads // weights.n_kv_heads
    dq_BHSK, dk_BHTK, dv_BHTU = attend_backward(split_heads(dy_BSD @ weights.o_proj, weights.n_heads), core)
    dq_BSX = merge_heads(dq_BHSK)
    dk_BSX = merge_heads(share_heads_backward(dk_BHTK, n_readers)[:, :, -S:])
    dv_BSX = merge_heads(share_heads_backward(dv_BHTU, n_readers)[:, :, -S:])
    dx_BSD = dq_BSX @ weights.q_proj + dk_BSX @ weights.k_proj + dv_BSX @ weights.v_proj
    return dx_BSD, GroupedQueryWeights(
        q_proj=weight_gradient(dq_BSX, x_BSD),
        k_proj=weight_gradient(dk_BSX, x_BSD),
        v_proj=weight_gradient(dv_BSX, x_BSD),
        o_proj=weight_gradient(dy_BSD, merged_BSX),
        n_heads=weights.n_heads,
        n_kv_heads=weights.n_kv_heads,
    )


def main() -> None:
    """Which head reads what, the dial from J = 6 to J = 1, then the gradient check."""
    names_BJTK = np.arange(2.0).reshape(1, 2, 1, 1)
    print("6 heads, 2 key-value heads: head h reads", share_heads_forward(names_BJTK, 3)[0, :, 0, 0].astype(int))
    rng = np.random.default_rng(0)
    x_BSD = rng.standard_normal((1, 5, 7))
    print("\n key-value heads J | values cached per token (K = U = 4)")
    for J in (6, 3, 2, 1):
        past = TokenCache(5)
        grouped_query_forward(x_BSD, GroupedQueryWeights.init(rng, D=7, H=6, J=J, K=4, U=4), past)
        name = {6: "multi-head", 1: "multi-query"}.get(J, "")
        print(f" {J:>17} | {past.nbytes // 8 // 5:>3} = 2 * {J} * 4   {name}")

    weights = GroupedQueryWeights.init(rng, D=7, H=6, J=3, K=2, U=5)
    x_BSD, dy_BSD = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    dx, dweights = grouped_query_backward(dy_BSD, grouped_query_forward(x_BSD, weights)[1])

    def loss() -> float:
        return float((grouped_query_forward(x_BSD, weights)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx       {gradient_error(loss, x_BSD, dx):.1e}")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        print(f"  d{name:<7} {gradient_error(loss, getattr(weights, name), getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
