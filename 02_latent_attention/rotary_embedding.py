"""Rotary position embedding: turn each pair of a query and a key by an angle that grows with the position.

    cd 02_latent_attention && python rotary_embedding.py

Notebook: rotary_embedding.ipynb. Source: arXiv:2104.09864 (RoFormer), Sec. 3.2.2 and 3.4.2.
Letters: B batch, S positions, H heads, R rotary width, P = R / 2 pairs.

Two orders of the same pairs are in use. The released DeepSeek weights pair neighbours, (0,1) (2,3) ...: `rotate_pairs`.
Many libraries pair halves, (0, R/2) (1, R/2 + 1) ...: `rotate_halves`. A permutation leads from one to the other; to
use one rule on weights made for the other gives a model that runs and speaks nonsense.
"""

import numpy as np
from kv_cache import gradient_error


def inverse_frequencies(R: int, theta: float = 10000.0) -> np.ndarray:
    """Return the angle per position of each of the R / 2 pairs: theta^(-2i / R), from 1 down to nearly 1 / theta.

    Raises:
        ValueError: an odd width cannot be cut into pairs.
    """
    if R < 2 or R % 2:
        raise ValueError(f"rotary width {R} cannot be cut into pairs; use {R + R % 2 or 2}")
    return theta ** (-np.arange(0, R, 2) / R)


def rope_angles(positions_S: np.ndarray, frequencies_P: np.ndarray) -> np.ndarray:
    """Angle of each pair at each position: [..., S] and [P] -> [..., S, P]; float64, large angles need it."""
    return np.asarray(positions_S, dtype=np.float64)[..., None] * frequencies_P


def _turn(first, second, angles_SP, dtype):
    """(a, b) -> (a cos - b sin, a sin + b cos): each pair turned counter-clockwise."""
    cos_SP, sin_SP = np.cos(angles_SP).astype(dtype), np.sin(angles_SP).astype(dtype)
    return first * cos_SP - second * sin_SP, first * sin_SP + second * cos_SP


def _refuse_angles(x_SR: np.ndarray, angles_SP: np.ndarray) -> None:
    """Raise ValueError unless there is one angle for each pair of each position."""
    if x_SR.shape[-1] != 2 * angles_SP.shape[-1] or x_SR.shape[-2] != angles_SP.shape[-2]:
        raise ValueError(
            f"{angles_SP.shape[-1]} angles at {angles_SP.shape[-2]} positions for an array of shape {x_SR.shape}; "
            f"its last axes must be [{angles_SP.shape[-2]}, {2 * angles_SP.shape[-1]}]"
        )


def rotate_pairs_forward(x_SR: np.ndarray, angles_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn neighbours (2i, 2i + 1) by angle i: the layout of the released weights.

    Leading axes are free ([B, H, S, R] for queries, [B, S, R] for the shared key); the angles broadcast against them.
    """
    _refuse_angles(x_SR, angles_SP)
    y_SR = np.empty(np.broadcast_shapes(x_SR.shape[:-1], angles_SP.shape[:-1]) + x_SR.shape[-1:], x_SR.dtype)
    y_SR[..., 0::2], y_SR[..., 1::2] = _turn(x_SR[..., 0::2], x_SR[..., 1::2], angles_SP, x_SR.dtype)
    return y_SR, angles_SP


def rotate_pairs_backward(dy_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """A rotation is orthogonal: its transpose, which the gradient needs, is the turn by the opposite angle."""
    return rotate_pairs_forward(dy_SR, -angles_SP)[0]


def rotate_halves_forward(x_SR: np.ndarray, angles_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn (i, i + R/2) by angle i: the half-split layout of many libraries."""
    _refuse_angles(x_SR, angles_SP)
    first_SP, second_SP = np.split(x_SR, 2, axis=-1)
    return np.concatenate(_turn(first_SP, second_SP, angles_SP, x_SR.dtype), axis=-1), angles_SP


def rotate_halves_backward(dy_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """Turn back, as in `rotate_pairs_backward`."""
    return rotate_halves_forward(dy_SR, -angles_SP)[0]


def half_split_order(R: int) -> np.ndarray:
    """Where the half-split layout takes its elements from: 0 2 4 ... 1 3 5 ...; x[..., order] is half-split."""
    inverse_frequencies(R)  # refuses an odd width
    return np.concatenate([np.arange(0, R, 2), np.arange(1, R, 2)])


def permute_rotary_rows(weight: np.ndarray, n_heads: int, width: int, R: int) -> np.ndarray:
    """Reorder, once, the rotary rows of a released projection so that `rotate_halves` may be used on its output.

    Args:
        weight: [n_heads * width, in]; in each head the last R of `width` rows are rotary (q_b_proj: width 192, R 64;
            kv_a_proj_with_mqa: one head of width 576, R 64).
    Raises:
        ValueError: the rows do not divide so.
    """
    if weight.shape[0] != n_heads * width or width < R:
        raise ValueError(f"{weight.shape[0]} rows are not {n_heads} heads of {width} rows with {R} rotary ones last")
    order = np.concatenate([np.arange(width - R), width - R + half_split_order(R)])
    return weight.reshape(n_heads, width, -1)[:, order].reshape(weight.shape)


def main() -> None:
    """A pair on a clock face, the score that sees only the distance, the two layouts, the gradient check."""
    frequencies_P = np.array([np.pi / 6])
    print("one pair, 30 degrees per position: (1, 0) at positions 0..3")
    turned, _ = rotate_pairs_forward(np.tile([1.0, 0.0], (4, 1)), rope_angles(np.arange(4), frequencies_P))
    print(" ", [tuple(float(v) for v in t.round(3)) for t in turned], " by hand (cos 30m, sin 30m)")

    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 8))
    frequencies_P = inverse_frequencies(8)
    print("\nscore of one query at m with one key at n: only m - n counts")
    for m, n in [(5, 2), (105, 102), (5005, 5002), (5, 4)]:
        at_m = rotate_pairs_forward(q, rope_angles([m], frequencies_P))[0]
        at_n = rotate_pairs_forward(k, rope_angles([n], frequencies_P))[0]
        print(f"  m = {m:>4}, n = {n:>4}: {float((at_m * at_n).sum()):+.9f}")

    order, angles_SP = half_split_order(8), rope_angles([3], frequencies_P)
    pairs, halves = rotate_pairs_forward(q, angles_SP)[0], rotate_halves_forward(q[:, order], angles_SP)[0]
    print("\nhalf-split order of 8:", order, "- after it both rules agree:", bool(np.allclose(pairs[:, order], halves)))

    x_SR, dy_SR = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 5, 4))
    angles_SP = rope_angles(np.arange(5), inverse_frequencies(4))
    print("\ngradient check (relative error against central differences)")
    pairs_rule, halves_rule = (
        (rotate_pairs_forward, rotate_pairs_backward),
        (rotate_halves_forward, rotate_halves_backward),
    )
    for forward, backward in (pairs_rule, halves_rule):
        error = gradient_error(
            lambda f=forward: float((f(x_SR, angles_SP)[0] * dy_SR).sum()), x_SR, backward(dy_SR, angles_SP)
        )
        print(f"  dx through {forward.__name__:<22} {error:.1e}")


if __name__ == "__main__":
    main()
