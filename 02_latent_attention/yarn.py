"""YaRN: stretch the slow pairs of RoPE for a longer context, leave the fast ones, and sharpen the softmax a little.

    cd 02_latent_attention && python yarn.py

Notebook: yarn.ipynb. Source: arXiv:2309.00071 (YaRN); arXiv:2412.19437, Sec. 4.3 (s = 40, alpha = 1, beta = 32,
sqrt(t) = 0.1 ln s + 1); the released config.json. Letters: R rotary width, P = R / 2 pairs, S positions.

`scaling` is the released `rope_scaling` dictionary (or None for plain RoPE):
    factor 40, original_max_position_embeddings 4096, beta_fast 32, beta_slow 1, mscale 1.0, mscale_all_dim 1.0
Frequencies are constants, so nothing here has a gradient of its own; the rotation that uses them has.
"""

import math

import numpy as np
from kv_cache import gradient_error
from rotary_embedding import inverse_frequencies, rope_angles, rotate_pairs_backward, rotate_pairs_forward

V3_SCALING = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
REQUIRED = ("factor", "original_max_position_embeddings", "mscale", "mscale_all_dim")


def refuse_scaling(scaling: dict) -> None:
    """Raise ValueError for a `rope_scaling` that this chapter does not implement or that makes no sense."""
    kind = scaling.get("type", scaling.get("rope_type", "yarn"))
    missing = [k for k in REQUIRED if k not in scaling]
    if kind != "yarn" or missing:
        raise ValueError(f"rope_scaling of type {kind!r}, missing {missing}; give a yarn one with every key, or None")
    if scaling["factor"] < 1:
        raise ValueError(f"factor={scaling['factor']} would shorten the context; use 1 or more")
    if scaling["mscale"] != scaling["mscale_all_dim"]:
        raise ValueError(
            f"mscale={scaling['mscale']} differs from mscale_all_dim={scaling['mscale_all_dim']}: their "
            "quotient would multiply cos and sin; every DeepSeek model has them equal, make them equal"
        )


def pair_at_rotations(n_rotations: float, R: int, theta: float, original_length: int) -> float:
    """Which pair (a real number) makes `n_rotations` full turns over the original context.

    turns_i = L0 theta^(-2i/R) / 2 pi   =>   i = R ln(L0 / (2 pi turns)) / (2 ln theta)
    """
    return R * math.log(original_length / (2 * math.pi * n_rotations)) / (2 * math.log(theta))


def ramp_bounds(R: int, theta: float, scaling: dict) -> tuple[int, int]:
    """Return the last pair that stays and the first that is fully stretched: for V3 pairs 10 and 23.

    Pairs with more than beta_fast turns have seen every angle in training; those with fewer than beta_slow have not.
    """
    original_length = scaling["original_max_position_embeddings"]
    low = math.floor(pair_at_rotations(scaling.get("beta_fast", 32), R, theta, original_length))
    high = math.ceil(pair_at_rotations(scaling.get("beta_slow", 1), R, theta, original_length))
    return max(low, 0), min(high, R - 1)


def stretch_ramp(R: int, theta: float, scaling: dict) -> np.ndarray:
    """Share of stretching of each pair: 0 up to `low`, 1 from `high`, a straight line over the pairs between.

    So does the released code; the YaRN paper draws the line over the turns of a pair (docs/errata.md).
    """
    low, high = ramp_bounds(R, theta, scaling)
    width = high - low if high != low else 0.001
    return np.clip((np.arange(R // 2) - low) / width, 0.0, 1.0)


def rotary_frequencies(R: int, theta: float = 10000.0, scaling: dict | None = None) -> np.ndarray:
    """Angle per position of each pair, with the context extension if there is one.

    f_i' = f_i (1 - ramp_i) + f_i / s  ramp_i
    """
    frequencies_P = inverse_frequencies(R, theta)
    if scaling is None:
        return frequencies_P
    refuse_scaling(scaling)
    ramp_P = stretch_ramp(R, theta, scaling)
    return frequencies_P * (1 - ramp_P) + frequencies_P / scaling["factor"] * ramp_P


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """Return 0.1 m ln(s) + 1, the root of YaRN's temperature; 1 without extension."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(width: int, scaling: dict | None = None) -> float:
    """Scale of the whole score, content and rope together: width^(-1/2) mscale^2.

    The square because the paper multiplies queries and keys by it once each. cos and sin stay as they are: to
    multiply them as well would count the temperature twice.
    """
    if scaling is None:
        return width**-0.5
    refuse_scaling(scaling)
    return width**-0.5 * magnitude(scaling["factor"], scaling["mscale_all_dim"]) ** 2


def main() -> None:
    """The ramp and the golden numbers of V3, then the gradient check through an extended rotation."""
    low, high = ramp_bounds(64, 10000.0, V3_SCALING)
    print(f"V3: 32 pairs, context 4096 -> 163840; pairs 0..{low} stay, {high}..31 turn 40 times slower")
    for turns, name in [(32, "beta_fast"), (1, "beta_slow")]:
        print(f"  {name} = {turns:>2} turns of 4096 tokens at pair {pair_at_rotations(turns, 64, 1e4, 4096):.3f}")
    plain, stretched = inverse_frequencies(64), rotary_frequencies(64, 10000.0, V3_SCALING)
    print("\n pair | turns in 4096 | plain         | V3            | plain / V3")
    for i in (0, 10, 11, 16, 22, 23, 31):
        turns = 4096 * plain[i] / (2 * math.pi)
        print(f" {i:>4} | {turns:>13.2f} | {plain[i]:.8e} | {stretched[i]:.8e} | {plain[i] / stretched[i]:>6.3f}")
    m = magnitude(40)
    print(f"\nmscale = 0.1 ln 40 + 1 = {m:.6f}; scale = {m:.6f}^2 / sqrt(192) = {softmax_scale(192, V3_SCALING):.7f}")
    print(f"without YaRN 1 / sqrt(192) = {softmax_scale(192):.7f}")

    rng = np.random.default_rng(0)
    x_SR, dy_SR = rng.standard_normal((5, 8)), rng.standard_normal((5, 8))
    angles_SP = rope_angles(np.arange(5) * 1000, rotary_frequencies(8, 10000.0, V3_SCALING))
    error = gradient_error(
        lambda: float((rotate_pairs_forward(x_SR, angles_SP)[0] * dy_SR).sum()),
        x_SR,
        rotate_pairs_backward(dy_SR, angles_SP),
    )
    print(f"\ngradient check: dx through the extended rotation, relative error {error:.1e}")


if __name__ == "__main__":
    main()
