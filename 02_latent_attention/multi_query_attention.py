"""Multi-query attention: every head asks its own question, all heads read the same keys and values.

    cd 02_latent_attention && python multi_query_attention.py

Notebook: multi_query_attention.ipynb. Source: arXiv:1911.02150 (fast transformer decoding: one write-head).
Letters: B batch, S queries, T keys, D model width, H heads, K key width, U value width.
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
class MultiQueryWeights:
    """q_proj [H K, D], k_proj [K, D], v_proj [U, D], o_proj [D, H U]: only the queries and the output know heads."""

    q_proj: np.ndarray
    k_proj: np.ndarray
    v_proj: np.ndarray
    o_proj: np.ndarray

    @classmethod
    def init(cls, rng: np.random.Generator, D: int, H: int, K: int, U: int) -> "MultiQueryWeights":
        """Draw weights of standard deviation 1 / sqrt(fan-in)."""
        return cls(*(rng.standard_normal(s) / s[1] ** 0.5 for s in [(H * K, D), (K, D), (U, D), (D, H * U)]))

    @property
    def n_heads(self) -> int:
        """Heads of the query: how often the one key width fits into the rows of q_proj."""
        H, rest = divmod(self.q_proj.shape[0], self.k_proj.shape[0])
        if rest:
            raise ValueError(f"q_proj has {self.q_proj.shape[0]} rows, no multiple of the key's {self.k_proj.shape[0]}")
        return H


def multi_query_forward(x_BSD: np.ndarray, weights: MultiQueryWeights, past: TokenCache | None = None):
    """Attend with H queries per token to one shared key and value per token.

    o_h,s = sum_t softmax_t(q_h,s . k_t / sqrt(K)) v_t        (k and v carry no h: the cache is H times smaller)
    """
    refuse_misfit(x_BSD, weights.q_proj.shape[1])
    q_BHSK = split_heads(x_BSD @ weights.q_proj.T, weights.n_heads)
    k_BTK, v_BTU = x_BSD @ weights.k_proj.T, x_BSD @ weights.v_proj.T
    if past is not None:
        k_BTK, v_BTU = past.append(k_BTK, v_BTU)
    shared_k_B1TK, shared_v_B1TU = k_BTK[:, None], v_BTU[:, None]
    o_BHSU, core = attend_forward(q_BHSK, shared_k_B1TK, shared_v_B1TU, q_BHSK.shape[-1] ** -0.5)
    merged_BSX = merge_heads(o_BHSU)
    return merged_BSX @ weights.o_proj.T, (x_BSD, weights, core, merged_BSX)


def multi_query_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, MultiQueryWeights]:
    """Return dx and the gradients of the weights: what the forward shares, the backward sums over heads."""
    x_BSD, weights, core, merged_BSX = cache
    S = x_BSD.shape[1]
    dq_BHSK, dk_BHTK, dv_BHTU = attend_backward(split_heads(dy_BSD @ weights.o_proj, weights.n_heads), core)
    dq_BSX = merge_heads(dq_BHSK)
    dk_BSK = dk_BHTK.sum(axis=1)[:, -S:]  # one key, H readers
    dv_BSU = dv_BHTU.sum(axis=1)[:, -S:]
    dx_BSD = dq_BSX @ weights.q_proj + dk_BSK @ weights.k_proj + dv_BSU @ weights.v_proj
    return dx_BSD, MultiQueryWeights(
        q_proj=weight_gradient(dq_BSX, x_BSD),
        k_proj=weight_gradient(dk_BSK, x_BSD),
        v_proj=weight_gradient(dv_BSU, x_BSD),
        o_proj=weight_gradient(dy_BSD, merged_BSX),
    )


def main() -> None:
    """Two heads over one key by hand, the size of the cache, then the gradient check."""
    eye = np.eye(2)
    weights = MultiQueryWeights(q_proj=np.vstack([eye, -eye]), k_proj=eye, v_proj=eye, o_proj=np.hstack([eye, eye]))
    past = TokenCache(2)
    _, (_, _, core, _) = multi_query_forward(np.array([[[1.0, 0.0], [0.0, 1.0]]]), weights, past)
    print("two tokens x = (1,0), (0,1); head 0 asks with x, head 1 with -x; one key per token")
    print(f"  token 1, head 0 weights {core[-1][0, 0, 1].round(3)}: by hand softmax(0, 1/sqrt 2) = (.330, .670)")
    print(f"  token 1, head 1 weights {core[-1][0, 1, 1].round(3)}: by hand softmax(0, -1/sqrt 2) = (.670, .330)")
    print(f"  cache: {past.nbytes // 8} values for 2 tokens of 2 heads; multi-head attention would keep 16")

    rng = np.random.default_rng(0)
    weights = MultiQueryWeights.init(rng, D=7, H=3, K=2, U=5)
    x_BSD, dy_BSD = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    dx, dweights = multi_query_backward(dy_BSD, multi_query_forward(x_BSD, weights)[1])

    def loss() -> float:
        return float((multi_query_forward(x_BSD, weights)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx       {gradient_error(loss, x_BSD, dx):.1e}")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        print(f"  d{name:<7} {gradient_error(loss, getattr(weights, name), getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
