"""A compact causal block with a cache: just enough of a decoder layer for this chapter to stand on its own.

Run it:    python causal_block.py
Notebook:  causal_block.ipynb
Source:    chapter 01 derives its parts; the rotary positions are those of arXiv:2104.09864.
Letters:   B batch, S queries, T keys, D model width, H heads, K head width, F hidden width.

    a = x + o_proj attention(norm(x))        y = a + down_proj relu(up_proj norm(a))^2
"""

from dataclasses import dataclass

import numpy as np
from mtp_module import norm_rows_backward, norm_rows_forward


@dataclass(frozen=True)
class CompactBlock:
    """One block; gradients come back in the same shape of dataclass."""

    input_layernorm: np.ndarray  # [D]
    qkv_proj: np.ndarray  # [3D, D]
    o_proj: np.ndarray  # [D, D]
    post_attention_layernorm: np.ndarray  # [D]
    up_proj: np.ndarray  # [F, D]
    down_proj: np.ndarray  # [D, F]

    @classmethod
    def init(cls, rng: np.random.Generator, D: int, F: int, dtype: type = np.float64) -> "CompactBlock":
        """Draw matrices that keep the scale of their input; what is added to the residual stream starts smaller."""

        def draw(n_out: int, n_in: int, gain: float = 1.0) -> np.ndarray:
            return (rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(dtype)

        one = np.ones(D, dtype)
        return cls(one, draw(3 * D, D), draw(D, D, 0.3), one.copy(), draw(F, D), draw(D, F, 0.3))


class KeyValueCache:
    """The keys and values of the rows read so far, [B, H, T, K] each; `truncate` forgets the last ones."""

    def __init__(self):
        self.key = self.value = None

    @property
    def length(self) -> int:
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.key = key if self.key is None else np.concatenate([self.key, key], axis=2)
        self.value = value if self.value is None else np.concatenate([self.value, value], axis=2)
        return self.key, self.value

    def truncate(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"cannot keep {length} rows of a cache of {self.length}")
        self.key, self.value = (None, None) if length == 0 else (self.key[:, :, :length], self.value[:, :, :length])


def rotate(x_BHSK: np.ndarray, position_BS: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Turn pair j of every row by the angle position * 10000^(-2j/K); sign -1 turns back (also the gradient)."""
    K = x_BHSK.shape[-1]
    angle = sign * position_BS[:, None, :, None] * 10000.0 ** (-np.arange(0, K, 2) / K)
    turned = np.ascontiguousarray(x_BHSK).view(np.result_type(x_BHSK, np.complex64))
    return (turned * np.exp(1j * angle).astype(turned.dtype)).view(x_BHSK.dtype)


def sum_outer_products(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sum dy x^T over all rows: the gradient of W in y = x W^T."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def compact_block_forward(w: CompactBlock, x_BSD, position_BS, n_heads: int, kv: KeyValueCache | None = None):
    """Run the block on S rows, after the rows that `kv` holds, if given: (y_BSD, cache)."""
    B, S, D = x_BSD.shape
    n1, n1_cache = norm_rows_forward(x_BSD, w.input_layernorm)
    q, k, v = (n1 @ w.qkv_proj.T).reshape(B, S, 3, n_heads, -1).transpose(2, 0, 3, 1, 4)
    q, k = rotate(q, position_BS), rotate(k, position_BS)
    keys, values = (k, v) if kv is None else kv.append(k, v)
    scale = k.dtype.type(k.shape[-1] ** -0.5)
    score = (q @ keys.swapaxes(-1, -2)) * scale
    T = keys.shape[2]
    score = np.where(np.arange(T) > np.arange(S)[:, None] + (T - S), score.dtype.type(-np.inf), score)
    prob = np.exp(score - score.max(axis=-1, keepdims=True))
    prob /= prob.sum(axis=-1, keepdims=True)
    mixed = (prob @ values).swapaxes(1, 2).reshape(B, S, D)
    a_BSD = x_BSD + mixed @ w.o_proj.T
    n2, n2_cache = norm_rows_forward(a_BSD, w.post_attention_layernorm)
    up = np.maximum(n2 @ w.up_proj.T, 0)
    y_BSD = a_BSD + (up * up) @ w.down_proj.T
    return y_BSD, (w, position_BS, n1, n1_cache, q, k, v, scale, prob, mixed, n2, n2_cache, up)


def compact_block_backward(dy_BSD: np.ndarray, cache: tuple) -> tuple[np.ndarray, CompactBlock]:
    """Differentiate a forward pass without cache: (dx_BSD, gradients)."""
    w, position_BS, n1, n1_cache, q, k, v, scale, prob, mixed, n2, n2_cache, up = cache
    dup = (dy_BSD @ w.down_proj) * (2 * up)  # relu's own gate is in `up`, which is zero where it is shut
    da_BSD, dpost = norm_rows_backward(dup @ w.up_proj, n2_cache)
    da_BSD = da_BSD + dy_BSD
    dmixed = (da_BSD @ w.o_proj).reshape(*da_BSD.shape[:2], q.shape[1], -1).swapaxes(1, 2)
    dprob = dmixed @ v.swapaxes(-1, -2)
    dscore = prob * (dprob - (dprob * prob).sum(axis=-1, keepdims=True)) * scale
    dq, dk = rotate(dscore @ k, position_BS, -1.0), rotate(dscore.swapaxes(-1, -2) @ q, position_BS, -1.0)
    dqkv = np.stack([dq, dk, prob.swapaxes(-1, -2) @ dmixed]).transpose(1, 3, 0, 2, 4).reshape(*n1.shape[:2], -1)
    dx_BSD, dinput = norm_rows_backward(dqkv @ w.qkv_proj, n1_cache)
    gradients = CompactBlock(
        dinput,
        sum_outer_products(dqkv, n1),
        sum_outer_products(da_BSD, mixed),
        dpost,
        sum_outer_products(dup, n2),
        sum_outer_products(dy_BSD, up * up),
    )
    return dx_BSD + da_BSD, gradients


def main() -> None:
    """Print that the future is not seen, that the cache changes nothing, and one gradient."""
    rng = np.random.default_rng(0)
    w, x, at = CompactBlock.init(rng, 6, 11), rng.standard_normal((1, 5, 6)), np.arange(5)[None]
    y, cache = compact_block_forward(w, x, at, 3)
    changed = x.copy()
    changed[0, 3] += 1
    moved = np.abs(compact_block_forward(w, changed, at, 3)[0] - y).max(axis=(0, 2))
    print(f"row 3 changed; the rows moved by {moved.round(3)}: the past does not see it")
    kv = KeyValueCache()
    parts = [compact_block_forward(w, x[:, i:j], at[:, i:j], 3, kv)[0] for i, j in ((0, 2), (2, 5))]
    print(f"two rows, then three through the cache: differs by {np.abs(np.concatenate(parts, 1) - y).max():.1e}")
    dx, worst = compact_block_backward(y, cache)[0], 0.0  # of the loss |y|^2 / 2
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 6e-6
        up, down = ((compact_block_forward(w, x + sign * step, at, 3)[0] ** 2).sum() / 2 for sign in (1, -1))
        worst = max(worst, abs((up - down) / 1.2e-5 - dx[index]))
    print(f"dx: largest difference from central differences {worst:.1e}")


if __name__ == "__main__":
    main()
