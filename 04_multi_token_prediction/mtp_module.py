"""One multi-token-prediction module: it reads the model's hidden row and the next token, and predicts the one after.

Run it:    python mtp_module.py
Notebook:  mtp_module.ipynb
Source:    arXiv:2412.19437, section 2.2, Eq. (21) to (23); tensor names as in the released `model.layers.61`.
Letters:   B batch, S rows, D model width.

Row i of depth k:
    pair_i   = eh_proj [enorm(E(t_{i+k})) ; hnorm(h_i^{k-1})]       Eq. (21), in the order of the released weights
    h_i^k    = TRM_k(pair_1 .. pair_i)                               Eq. (22), any causal block, at positions 1 .. i
    P^k_i+k+1 = softmax(lm_head shared_head.norm(h_i^k))             Eq. (23), embedding and head are the main model's

The block is an argument: `block_forward(x_BSD, position_BS) -> (y_BSD, cache)` and
`block_backward(dy_BSD, cache) -> (dx_BSD, dblock)`. V3 uses a whole decoder layer of its own; chapter 06 passes one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

EPS = 1e-6  # rms_norm_eps of the released config
ORDERS = ("released", "paper")


def norm_rows_forward(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Scale every row to root mean square 1, then every column by its weight (chapter 01 derives it)."""
    scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(EPS))
    unit = x * scale
    return unit * weight, (unit, scale, weight)


def norm_rows_backward(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate the row norm: (dx, dweight). Along the row itself nothing passes: its length is fixed."""
    unit, scale, weight = cache
    dunit = dy * weight
    dx = scale * (dunit - unit * (dunit * unit).mean(axis=-1, keepdims=True))
    return dx, (dy * unit).reshape(-1, unit.shape[-1]).sum(axis=0)


@dataclass(frozen=True)
class MtpWeights:
    """What a module owns besides its block; the embedding and the output head belong to the main model."""

    enorm: np.ndarray  # [D], for the embedding of the token that the main model has just emitted
    hnorm: np.ndarray  # [D], for the hidden row of the depth below
    eh_proj: np.ndarray  # [D, 2D], M_k of the paper
    shared_head_norm: np.ndarray  # [D], `shared_head.norm`: the module's own, not the main model's final norm

    @classmethod
    def init(cls, rng: np.random.Generator, hidden_size: int, dtype: type = np.float64) -> "MtpWeights":
        """Draw a projection that keeps the scale of its input; norms start at one."""
        D = hidden_size
        one = np.ones(D, dtype)
        eh_proj = (rng.standard_normal((D, 2 * D)) / np.sqrt(2 * D)).astype(dtype)
        return cls(one, one.copy(), eh_proj, one.copy())


def swap_order(eh_proj: np.ndarray) -> np.ndarray:
    """Exchange the two halves of the columns: paper order <-> released order. Its own inverse."""
    D = eh_proj.shape[0]
    return np.concatenate([eh_proj[:, D:], eh_proj[:, :D]], axis=1)


def combine_forward(
    weights: MtpWeights, hidden_BSD: np.ndarray, embedding_BSD: np.ndarray, order: str = "released"
) -> tuple[np.ndarray, tuple]:
    """Normalize hidden row and token embedding apart, and project the pair back to the model width.

        released:  eh_proj [enorm(embedding) ; hnorm(hidden)]        the first D columns read the embedding
        paper:     M_k     [hnorm(hidden) ; enorm(embedding)]        Eq. (21) as printed

    Args:
        hidden_BSD: row i is h_i of the depth below, for depth 1 the main model's output after its final norm.
        embedding_BSD: row i is the embedding of t_{i+k}, aligned by the caller.
        order: "released" or "paper".
    Raises:
        ValueError: the two inputs differ in shape, or the order is unknown.
    Source: arXiv:2412.19437, Eq. (21).
    """
    if hidden_BSD.shape != embedding_BSD.shape:
        raise ValueError(
            f"hidden {hidden_BSD.shape} and embedding {embedding_BSD.shape} differ; "
            "at depth k drop the last hidden row and the first k tokens"
        )
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is unknown; choose 'released' (embedding first) or 'paper' (hidden first)")
    h_BSD, h_cache = norm_rows_forward(hidden_BSD, weights.hnorm)
    e_BSD, e_cache = norm_rows_forward(embedding_BSD, weights.enorm)
    halves = [e_BSD, h_BSD] if order == "released" else [h_BSD, e_BSD]
    pair = np.concatenate(halves, axis=-1)
    return pair @ weights.eh_proj.T, (pair, h_cache, e_cache, weights.eh_proj, order)  # V3 Eq. (21)


def combine_backward(dy_BSD: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Differentiate the pair: (dhidden_BSD, dembedding_BSD, the gradients of eh_proj, enorm and hnorm by name)."""
    pair, h_cache, e_cache, eh_proj, order = cache
    D = dy_BSD.shape[-1]
    deh_proj = dy_BSD.reshape(-1, D).T @ pair.reshape(-1, 2 * D)
    dpair = dy_BSD @ eh_proj
    first, second = dpair[..., :D], dpair[..., D:]
    de_BSD, dh_BSD = (first, second) if order == "released" else (second, first)
    dhidden_BSD, dhnorm = norm_rows_backward(dh_BSD, h_cache)
    dembedding_BSD, denorm = norm_rows_backward(de_BSD, e_cache)
    return dhidden_BSD, dembedding_BSD, {"eh_proj": deh_proj, "enorm": denorm, "hnorm": dhnorm}


def mtp_forward(
    weights: MtpWeights,
    hidden_BSD: np.ndarray,
    embedding_BSD: np.ndarray,
    position_BS: np.ndarray,
    block_forward: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Any]],
    order: str = "released",
) -> tuple[np.ndarray, tuple]:
    """Run one depth: combine, block, norm. The result goes into the shared head and on to the next depth.

        h' = combine(h^{k-1}, E(t_{+k})),   h^k = block(h', position),   out = shared_head.norm(h^k)

    Args:
        position_BS: the positions of the *hidden* rows, i and not i + k: row i stands where h_i stands.
        block_forward: a causal block; what it needs beyond (x_BSD, position_BS) it holds itself.
    Returns:
        out_BSD, normalized: `out_BSD @ lm_head.T` are the logits of Eq. (23). Normalized is also what the next depth
        gets, as depth 1 gets the main model's normalized output (the paper leaves this open; vLLM and SGLang do so).
    Source: arXiv:2412.19437, Eq. (21), Eq. (22).
    """
    if position_BS.shape != hidden_BSD.shape[:-1]:
        raise ValueError(f"positions {position_BS.shape} for hidden rows {hidden_BSD.shape[:-1]}; one for each row")
    pair_BSD, combine_cache = combine_forward(weights, hidden_BSD, embedding_BSD, order)
    block_BSD, block_cache = block_forward(pair_BSD, position_BS)  # V3 Eq. (22)
    out_BSD, norm_cache = norm_rows_forward(block_BSD, weights.shared_head_norm)
    return out_BSD, (combine_cache, block_cache, norm_cache)


def mtp_backward(
    dout_BSD: np.ndarray, cache: tuple, block_backward: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]
) -> tuple[np.ndarray, np.ndarray, MtpWeights, Any]:
    """Differentiate one depth.

    Args:
        dout_BSD: from the shared head, plus from the next depth where there is one.
    Returns:
        dhidden_BSD, dembedding_BSD, the module's gradients under its weights' names, and the block's, as it gave them.
    """
    combine_cache, block_cache, norm_cache = cache
    dblock_out_BSD, dshared_head_norm = norm_rows_backward(dout_BSD, norm_cache)
    dpair_BSD, dblock = block_backward(dblock_out_BSD, block_cache)
    dhidden_BSD, dembedding_BSD, dcombine = combine_backward(dpair_BSD, combine_cache)
    return dhidden_BSD, dembedding_BSD, MtpWeights(shared_head_norm=dshared_head_norm, **dcombine), dblock


def main() -> None:
    """Print one module on three rows of width 2, the two orders, and its gradient against central differences."""
    keep = (lambda x, position: (x, None)), (lambda dy, cache: (dy, None))  # the simplest block: do nothing
    hidden_BSD = np.array([[[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]]])
    embedding_BSD = np.array([[[6.0, 8.0], [5.0, 0.0], [1.0, -1.0]]])
    position_BS = np.arange(3)[None]
    eh_proj = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # embedding's 1st value, hidden's 2nd
    weights = MtpWeights(np.ones(2), np.ones(2), eh_proj, np.ones(2))
    print("hidden (3, 4) and embedding (6, 8) both normalize to (3, 4) / sqrt(12.5) = (0.8485, 1.1314)")
    print("eh_proj takes the first number of the joined row and the last; row 1 is hidden (0, 2), embedding (5, 0):")
    for order, first in zip(ORDERS, ("embedding", "hidden row")):
        pair = combine_forward(weights, hidden_BSD, embedding_BSD, order)[0][0, 1]
        print(f"   {order} order, {first} first: ({pair[0]:.3f}, {pair[1]:.3f})")
    swapped = MtpWeights(weights.enorm, weights.hnorm, swap_order(eh_proj), weights.shared_head_norm)
    a = combine_forward(weights, hidden_BSD, embedding_BSD, "released")[0]
    b = combine_forward(swapped, hidden_BSD, embedding_BSD, "paper")[0]
    print(f"with its halves exchanged the paper's order gives the same, to the last bit: {np.array_equal(a, b)}")

    rng = np.random.default_rng(0)
    weights, dout = MtpWeights.init(rng, 2), rng.standard_normal(hidden_BSD.shape)
    _, cache = mtp_forward(weights, hidden_BSD, embedding_BSD, position_BS, keep[0])
    dhidden, dembedding, dweights, _ = mtp_backward(dout, cache, keep[1])
    pairs = {"hidden": (hidden_BSD, dhidden), "embedding": (embedding_BSD, dembedding)}
    pairs |= {name: (getattr(weights, name), getattr(dweights, name)) for name in MtpWeights.__dataclass_fields__}
    for name, (array, gradient) in pairs.items():
        worst, h = 0.0, 6e-6
        for index in np.ndindex(array.shape):
            kept, sides = array[index], []
            for step in (h, -h):
                array[index] = kept + step
                out = mtp_forward(weights, hidden_BSD, embedding_BSD, position_BS, keep[0])[0]
                sides.append((out * dout).sum())
            array[index] = kept
            worst = max(worst, abs((sides[0] - sides[1]) / (2 * h) - gradient[index]))
        print(f"d{name:<17} differs from central differences by {worst:.1e} at most")


if __name__ == "__main__":
    main()
