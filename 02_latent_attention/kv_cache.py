"""Decode with a cache of keys and values: what is kept, and what would be computed again without it.

    cd 02_latent_attention && python kv_cache.py

Notebook: kv_cache.ipynb. Source: arXiv:2405.04434, Eq. (1)-(8), the standard multi-head attention that MLA replaces.
Letters: B batch, S queries (tokens computed now), T keys (cached tokens + S), D model width, H heads, K key width,
U value width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class TokenCache:
    """Keep arrays that grow along their token axis (-2): room for `capacity` tokens is taken once, nothing moves.

    The same class serves every attention of this chapter; only the parts differ: keys and values [B, H, T, K] here,
    one latent [B, T, C] and one rotary key [B, T, R] in latent attention.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity={capacity} holds no token; give at least 1")
        self.capacity = capacity
        self.n_tokens = 0
        self.rooms: tuple[np.ndarray, ...] = ()

    def append(self, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Write the new tokens behind the old ones; return everything kept so far, as views.

        Raises:
            ValueError: the tokens do not fit into the room that is left, or the parts changed their shape.
        """
        n_new = parts[0].shape[-2]
        end = self.n_tokens + n_new
        if end > self.capacity:
            raise ValueError(f"{n_new} tokens after {self.n_tokens} exceed capacity={self.capacity}; ask for {end}")
        if not self.rooms:
            self.rooms = tuple(np.zeros((*p.shape[:-2], self.capacity, p.shape[-1]), p.dtype) for p in parts)
        for room, part in zip(self.rooms, parts, strict=True):
            if part.shape != (*room.shape[:-2], n_new, room.shape[-1]):
                raise ValueError(f"a part of shape {part.shape} does not continue a cache of shape {room.shape}")
            room[..., self.n_tokens : end, :] = part
        self.n_tokens = end
        return tuple(room[..., :end, :] for room in self.rooms)

    def truncate(self, n_tokens: int) -> None:
        """Forget every token after the first `n_tokens`: what speculative decoding does with a rejected draft."""
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot keep {n_tokens} of {self.n_tokens} tokens; give 0 to {self.n_tokens}")
        self.n_tokens = n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens kept (not of the room that is still empty)."""
        return sum(room[..., : self.n_tokens, :].nbytes for room in self.rooms)


def attend_forward(q_BHSK: np.ndarray, k_BHTK: np.ndarray, v_BHTU: np.ndarray, scale: float):
    """Let the last S of T tokens attend to everything up to themselves.

        o_s = sum_t softmax_t(scale q_s . k_t) v_t,   t <= s + (T - S)    (the offset: T - S tokens were there before)

    Heads of k and v may be 1 and are then shared; the gradients keep the head axis, the caller sums it.

    Raises:
        ValueError: fewer keys than queries.
    """
    S, T = q_BHSK.shape[-2], k_BHTK.shape[-2]
    if T < S:
        raise ValueError(f"{S} queries but only {T} keys; every query needs at least its own key")
    score_BHST = scale * (q_BHSK @ k_BHTK.swapaxes(-1, -2))
    visible_ST = np.arange(T) <= np.arange(S)[:, None] + (T - S)
    score_BHST = np.where(visible_ST, score_BHST, -np.inf)
    weight_BHST = np.exp(score_BHST - score_BHST.max(-1, keepdims=True))
    weight_BHST /= weight_BHST.sum(-1, keepdims=True)
    return weight_BHST @ v_BHTU, (q_BHSK, k_BHTK, v_BHTU, scale, weight_BHST)


def attend_backward(do_BHSU: np.ndarray, cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dq, dk, dv. Masked places have weight 0, so the softmax rule closes them by itself.

    dscore = weight (dweight - sum_t weight dweight)
    """
    q_BHSK, k_BHTK, v_BHTU, scale, weight_BHST = cache
    dweight_BHST = do_BHSU @ v_BHTU.swapaxes(-1, -2)
    dv_BHTU = weight_BHST.swapaxes(-1, -2) @ do_BHSU
    dscore_BHST = weight_BHST * (dweight_BHST - (weight_BHST * dweight_BHST).sum(-1, keepdims=True))
    return scale * (dscore_BHST @ k_BHTK), scale * (dscore_BHST.swapaxes(-1, -2) @ q_BHSK), dv_BHTU


def split_heads(x_BSX: np.ndarray, n_heads: int) -> np.ndarray:
    """[B, S, H * K] -> [B, H, S, K]: rows of a projection belong to heads in order."""
    B, S, X = x_BSX.shape
    if X % n_heads:
        raise ValueError(f"width {X} does not divide into {n_heads} heads; use a multiple of {n_heads}")
    return x_BSX.reshape(B, S, n_heads, X // n_heads).swapaxes(1, 2)


def merge_heads(x_BHSK: np.ndarray) -> np.ndarray:
    """[B, H, S, K] -> [B, S, H * K], the inverse of `split_heads`."""
    B, H, S, K = x_BHSK.shape
    return x_BHSK.swapaxes(1, 2).reshape(B, S, H * K)


def weight_gradient(dy_BSX: np.ndarray, x_BSD: np.ndarray) -> np.ndarray:
    """Gradient of W [out, in] in y = x W^T: the sum over all tokens of the outer products dy x^T."""
    return np.tensordot(dy_BSX, x_BSD, axes=([0, 1], [0, 1]))


def refuse_misfit(x_BSD: np.ndarray, width: int) -> None:
    """Raise ValueError unless the hidden states are [B, S, width] and hold at least one token."""
    if x_BSD.ndim != 3 or x_BSD.shape[-1] != width or x_BSD.shape[1] == 0:
        raise ValueError(f"hidden states of shape {x_BSD.shape}; expected [B, S, {width}] with at least one token")


@dataclass(frozen=True)
class MultiHeadWeights:
    """q_proj, k_proj [H K, D], v_proj [H U, D], o_proj [D, H U]."""

    q_proj: np.ndarray
    k_proj: np.ndarray
    v_proj: np.ndarray
    o_proj: np.ndarray
    n_heads: int

    @classmethod
    def init(cls, rng: np.random.Generator, D: int, H: int, K: int, U: int) -> "MultiHeadWeights":
        """Draw weights of standard deviation 1 / sqrt(fan-in)."""
        shapes = [(H * K, D), (H * K, D), (H * U, D), (D, H * U)]
        return cls(*(rng.standard_normal(s) / s[1] ** 0.5 for s in shapes), n_heads=H)


def cached_attention_forward(x_BSD: np.ndarray, weights: MultiHeadWeights, past: TokenCache | None = None):
    """Attend with the new tokens to themselves and to the past; append their keys and values to the past.

    Only the S new tokens are projected. Without `past` this is plain causal multi-head attention.
    """
    refuse_misfit(x_BSD, weights.q_proj.shape[1])
    q_BHSK = split_heads(x_BSD @ weights.q_proj.T, weights.n_heads)
    k_BHTK = split_heads(x_BSD @ weights.k_proj.T, weights.n_heads)
    v_BHTU = split_heads(x_BSD @ weights.v_proj.T, weights.n_heads)
    if past is not None:
        k_BHTK, v_BHTU = past.append(k_BHTK, v_BHTU)
    o_BHSU, core = attend_forward(q_BHSK, k_BHTK, v_BHTU, q_BHSK.shape[-1] ** -0.5)
    merged_BSX = merge_heads(o_BHSU)
    return merged_BSX @ weights.o_proj.T, (x_BSD, weights, core, merged_BSX)


def cached_attention_backward(dy_BSD: np.ndarray, cache) -> tuple[np.ndarray, MultiHeadWeights]:
    """Return dx and the gradients of the weights; what was cached before counts as constant."""
    x_BSD, weights, core, merged_BSX = cache
    S = x_BSD.shape[1]
    dq_BHSK, dk_BHTK, dv_BHTU = attend_backward(split_heads(dy_BSD @ weights.o_proj, weights.n_heads), core)
    dq_BSX = merge_heads(dq_BHSK)
    dk_BSX = merge_heads(dk_BHTK[:, :, -S:])
    dv_BSX = merge_heads(dv_BHTU[:, :, -S:])
    dx_BSD = dq_BSX @ weights.q_proj + dk_BSX @ weights.k_proj + dv_BSX @ weights.v_proj
    return dx_BSD, MultiHeadWeights(
        q_proj=weight_gradient(dq_BSX, x_BSD),
        k_proj=weight_gradient(dk_BSX, x_BSD),
        v_proj=weight_gradient(dv_BSX, x_BSD),
        o_proj=weight_gradient(dy_BSD, merged_BSX),
        n_heads=weights.n_heads,
    )


def decode_with_cache(x_BSD: np.ndarray, weights: MultiHeadWeights) -> tuple[np.ndarray, int]:
    """Feed one token at a time and keep keys and values; return the outputs and how many tokens were projected."""
    past, outputs = TokenCache(x_BSD.shape[1]), []
    for s in range(x_BSD.shape[1]):
        outputs.append(cached_attention_forward(x_BSD[:, s : s + 1], weights, past)[0])
    return np.concatenate(outputs, axis=1), len(outputs)


def decode_by_recomputing(x_BSD: np.ndarray, weights: MultiHeadWeights) -> tuple[np.ndarray, int]:
    """Keep nothing: at every step project the whole prefix again and use its last row."""
    outputs, n_projected = [], 0
    for s in range(1, x_BSD.shape[1] + 1):
        outputs.append(cached_attention_forward(x_BSD[:, :s], weights)[0][:, -1:])
        n_projected += s
    return np.concatenate(outputs, axis=1), n_projected


def gradient_error(loss: Callable[[], float], array: np.ndarray, gradient: np.ndarray, step: float = 6e-6) -> float:
    """Largest difference to central differences, over the largest gradient (for the checks that modules print)."""
    numeric = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = loss()
        array[index] = kept - step
        numeric[index] = (above - loss()) / (2 * step)
        array[index] = kept
    return float(np.abs(numeric - gradient).max() / np.abs(numeric).max())


def main() -> None:
    """Three tokens by hand, then the count, then the gradient check."""
    one = MultiHeadWeights(*(np.eye(2) for _ in range(4)), n_heads=1)
    x_BSD = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    past = TokenCache(3)
    print("three tokens, identity weights: q = k = v = x; each step projects one token and reads the cache")
    for s in range(3):
        y, (_, _, core, _) = cached_attention_forward(x_BSD[:, s : s + 1], one, past)
        print(f"  step {s}: {past.n_tokens} keys, weights {core[-1][0, 0, 0].round(3)}, output {y[0, 0].round(3)}")
    print("  step 2 by hand: scores (1, 1, 2)/sqrt(2), softmax = (.248, .248, .503), output = (.752, .752)")

    rng = np.random.default_rng(0)
    weights = MultiHeadWeights.init(rng, D=7, H=3, K=2, U=5)
    x_BSD = rng.standard_normal((1, 64, 7))
    (kept, n_kept), (again, n_again) = decode_with_cache(x_BSD, weights), decode_by_recomputing(x_BSD, weights)
    print(f"\n64 tokens: {n_kept} projected with a cache, {n_again} = 64*65/2 without")
    print(f"the outputs are the same: they differ by at most {np.abs(kept - again).max():.0e}")

    x_BSD, dy_BSD = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    dx, dweights = cached_attention_backward(dy_BSD, cached_attention_forward(x_BSD, weights)[1])

    def loss() -> float:
        return float((cached_attention_forward(x_BSD, weights)[0] * dy_BSD).sum())

    print("\ngradient check (relative error against central differences)")
    print(f"  dx       {gradient_error(loss, x_BSD, dx):.1e}")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        print(f"  d{name:<7} {gradient_error(loss, getattr(weights, name), getattr(dweights, name)):.1e}")


if __name__ == "__main__":
    main()
