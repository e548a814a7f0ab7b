"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import numpy as np
from absorbed_attention import split_up_projection
from cache_size import V3
from decoupled_rope import MLAConfig
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    rope_angles,
    rotate_halves_forward,
    rotate_pairs_forward,
)
from yarn import V3_SCALING, rotary_frequencies

V3_LENGTH = V3_SCALING["original_max_position_embeddings"]


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-9))


def expect_shape(got, shape: tuple[int, ...], what: str) -> None:
    """Complain about a wrong shape in words."""
    assert np.shape(got) == shape, f"{what} has shape {np.shape(got)}, expected {shape}"


def check_mask_with_past(answer) -> None:
    """A mask of the last S of T tokens."""
    S, T = 3, 7
    got = answer(S, T)
    expect_shape(got, (S, T), "your mask")
    want = np.arange(T) <= np.arange(S)[:, None] + T - S
    assert not same(got, np.tri(S, T, dtype=bool)), "your mask starts at key 0; the queries are the LAST S of T tokens"
    assert not same(got, ~want), "your mask is upside down: True must mean 'may see'"
    assert not same(got, np.arange(T) < np.arange(S)[:, None] + T - S), "a token must see itself: use <=, not <"
    future = np.asarray(got, dtype=bool) & ~want
    assert not future.any(), (
        f"query {np.argwhere(future)[0][0]} sees key {np.argwhere(future)[0][1]}, which is its future"
    )
    assert same(got, want), "some keys of the past are hidden: every query sees all tokens up to itself"
    assert same(answer(4, 4), np.tri(4, dtype=bool)), "without a past (S = T) the mask must be the lower triangle"


def check_rotate_neighbours(answer) -> None:
    """A rotation of interleaved pairs."""
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((5, 6)), rope_angles(np.arange(5), inverse_frequencies(6))
    kept = x.copy()
    got, want = answer(x, angles), rotate_pairs_forward(x, angles)[0]
    expect_shape(got, x.shape, "your answer")
    assert np.array_equal(x, kept), "you changed x in place; return a new array"
    assert not same(got, rotate_pairs_forward(x, -angles)[0]), "you turn the wrong way: (a cos - b sin, a sin + b cos)"
    halves = rotate_halves_forward(x, angles)[0]
    assert not same(got, halves), "you turn the pairs (i, i + R/2); the released weights pair neighbours (2i, 2i + 1)"
    moved = want[:, half_split_order(6)]
    assert not same(got, moved), "the values are right but moved into the half-split order; leave the pairs in place"
    lengths = np.allclose((np.asarray(got) ** 2).sum(-1), (x**2).sum(-1))
    assert lengths, "the length of the rows changed; a turn keeps it (did you overwrite a before b used it?)"
    assert same(got, want), "lengths are right, directions are not: pair i takes angle i of its own row"


def check_compress_hidden(answer) -> None:
    """The two cached vectors."""
    rng = np.random.default_rng(1)
    C, R, S, D = 5, 4, 3, 7
    x, weight, norm = rng.standard_normal((S, D)), rng.standard_normal((C + R, D)), 1 + rng.random(C)
    angles = rope_angles(np.arange(S) + 2, inverse_frequencies(R))
    latent, rope = answer(x, weight, norm, angles)
    raw = x @ weight.T
    unit = raw[:, :C] / np.sqrt(np.mean(raw[:, :C] ** 2, -1, keepdims=True) + 1e-6)
    if np.ndim(rope) == 3:
        raise AssertionError("your rope key has a head axis; the released one is a single key shared by all heads")
    expect_shape(latent, (S, C), "your latent")
    expect_shape(rope, (S, R), "your rope key")
    assert not same(latent, raw[:, :C]), "your latent is not normed; the cache holds RMSNorm(c)"
    assert not same(latent, unit), "your RMSNorm leaves out its weight kv_a_layernorm"
    joint = raw / np.sqrt(np.mean(raw**2, -1, keepdims=True) + 1e-6)
    assert not same(latent, norm * joint[:, :C]), (
        "you normed over C + R columns; the mean goes over the latent's C only"
    )
    assert not same(latent, norm * raw[:, R:] / np.sqrt(np.mean(raw[:, R:] ** 2, -1, keepdims=True) + 1e-6)), (
        "you took the latent from the last rows; in kv_a_proj_with_mqa the C latent rows come first"
    )
    assert same(latent, norm * unit), "your latent is wrong: weight * c / sqrt(mean(c * c) + 1e-6), the mean over C"
    want = rotate_pairs_forward(raw[:, C:], angles)[0]
    assert not same(rope, raw[:, C:]), "your rope key is not turned; the cache holds it after RoPE"
    alone = raw[:, C:] / np.sqrt(np.mean(raw[:, C:] ** 2, -1, keepdims=True) + 1e-6)
    for normed in (joint[:, C:], alone):
        assert not same(rope, rotate_pairs_forward(normed, angles)[0]), (
            "you normed the rope key; only the latent is normed"
        )
    assert not same(rope, rotate_halves_forward(raw[:, C:], angles)[0]), (
        "you turned halves; the weights pair neighbours"
    )
    assert same(rope, want), (
        "your rope key is wrong: the last R columns of x W^T, turned by the angles of their position"
    )


def check_score_absorbed(answer) -> None:
    """Scores from the latent."""
    rng = np.random.default_rng(2)
    config = MLAConfig(7, 3, kv_lora_rank=5, qk_nope_head_dim=2, qk_rope_head_dim=4, v_head_dim=3)
    w_uk, _ = split_up_projection(rng.standard_normal((15, 5)), config)
    q, q_rope = rng.standard_normal((3, 2)), rng.standard_normal((3, 4))
    latent, k_rope = rng.standard_normal((11, 5)), rng.standard_normal((11, 4))
    got = answer(q, q_rope, latent, k_rope, w_uk)
    content = np.einsum("hk,htk->ht", q, np.einsum("hkc,tc->htk", w_uk, latent))
    rope = q_rope @ k_rope.T
    expect_shape(got, (3, 11), "your score")
    assert not same(got, content + rope), "your scores are not scaled: multiply by (K + R) ** -0.5"
    assert not same(got, (content + rope) * 9**-0.5), (
        "you scale by (C + R) ** -0.5; absorbing changes no score, use K + R"
    )
    assert not same(got, content * 2**-0.5 + rope * 4**-0.5), (
        "you scale content and rope apart; one scale covers the sum"
    )
    assert not same(got, (content + rope) * 2**-0.5), "you scale by the content width; the joint width is K + R"
    assert not same(got, content * 6**-0.5), "the rotary part is missing"
    assert same(got, (content + rope) * 6**-0.5), (
        "wrong numbers: W_UK,h^T q_h per head, then the dot product with each c_t"
    )


def check_stretch_frequencies(answer) -> None:
    """YaRN frequencies of the released model, and of another."""
    plain, want = inverse_frequencies(64), rotary_frequencies(64, 10000.0, V3_SCALING)
    got = answer(plain, 40, V3_LENGTH, 32, 1, 10000.0)
    expect_shape(got, (32,), "your answer")
    assert not same(np.asarray(got) / plain, np.full(32, 1 / 40)), "plain interpolation: the fast pairs must stay"
    ramp = np.clip((np.arange(32) - 10) / 13, 0, 1)
    assert not same(np.asarray(got) / plain, ramp + (1 - ramp) / 40), "upside down: ramp 0 (fast pairs) means unchanged"
    doubled = np.clip((np.arange(32) - 20) / 26, 0, 1)
    assert not same(np.asarray(got) / plain, 1 - doubled + doubled / 40), (
        "your bounds are dimension indices (20, 46); count pairs: R ln(...) / (2 ln theta) gives 10 and 23"
    )
    wrong = np.flatnonzero(~np.isclose(np.asarray(got) / want, 1, rtol=1e-9))
    assert not len(wrong), f"pair {wrong[0]} is {got[wrong[0]]:.8e}, the released model has {want[wrong[0]]:.8e}"
    scaling = {**V3_SCALING, "factor": 8, "original_max_position_embeddings": 2048}
    other = rotary_frequencies(32, 5000.0, scaling)
    assert np.allclose(answer(inverse_frequencies(32, 5000.0), 8, 2048, 32, 1, 5000.0) / other, 1), (
        "right for V3 only: take R = 2 P, L0 and theta from the arguments"
    )


def check_cache_bytes(answer) -> None:
    """Bytes per token of V3."""
    got = answer(V3)
    means = {
        62_464: "you forgot the rotary key: 64 more values per layer",
        1_152: "that is one layer; every one of the 61 keeps its own",
        576: "that is values of one layer; count layers and bytes",
        35_136: "those are values; a BF16 value has 2 bytes",
        140_544: "you count the latent as a key and as a value; it is both at once",
        124_928: "you count the latent twice and forget the rotary key",
        3_997_696: "that is multi-head attention: the expanded keys and values are not cached",
        4_997_120: "those are the expanded keys and values, with rope; only latent and rotary key are cached",
    }
    assert got == 70_272, means.get(got, f"you count {got} bytes; V3 keeps (512 + 64) * 61 * 2 = 70,272")
    assert answer({**V3, "num_hidden_layers": 2, "qk_rope_head_dim": 32}, 1) == 1088, (
        "use the config and bytes_per_value"
    )
