"""A wrong answer is told what is wrong with it."""

import numpy as np
import pytest
from rotary_embedding import inverse_frequencies, rotate_halves_forward

from utils.exercises import ROOT, load_file

CHAPTER = ROOT / "02_latent_attention"
checks = load_file(CHAPTER / "exercise_checks.py")
solved = load_file(CHAPTER / "exercises_solved.py")


def per_head_key(x, weight, norm, angles):
    latent, rope = solved.compress_hidden(x, weight, norm, angles)
    return latent, np.stack([rope, rope])


def normed_key(x, weight, norm, angles):
    latent, _ = solved.compress_hidden(x, weight, norm, angles)
    raw = (x @ weight.T)[:, len(norm) :]
    unit = raw / np.sqrt(np.mean(raw**2, -1, keepdims=True) + 1e-6)
    return latent, solved.rotate_neighbours(unit, angles)


def absorbed_width(q, q_rope, latent, k_rope, w_uk):
    right, C = solved.score_absorbed(q, q_rope, latent, k_rope, w_uk), latent.shape[-1]
    return right * ((q.shape[-1] + q_rope.shape[-1]) / (C + q_rope.shape[-1])) ** 0.5


def softmax_without_its_sum(do, q, k, v, share):
    flat, scale = share * (do @ v.T), q.shape[1] ** -0.5
    return scale * flat @ k, scale * flat.T @ q, share.T @ do


def mean_divided_by_the_keys(do, q, k, v, share):
    dshare, scale = do @ v.T, q.shape[1] ** -0.5
    dscore = share * (dshare - (share * dshare).mean(1, keepdims=True))
    return scale * dscore @ k, scale * dscore.T @ q, share.T @ do


def key_only(dk, dv, c, uk, uv):
    return solved.expand_latent_backward(dk, 0 * dv, c, uk, uv)


def keeps_the_root(dlatent, drope, x, w, norm, angles):
    c = x @ w[: len(norm)].T
    dc = dlatent * norm / np.sqrt(np.mean(c**2, 1, keepdims=True) + 1e-6)
    draw = np.concatenate([dc, solved.rotate_neighbours(drope, -angles)], 1)
    _, _, dnorm = solved.compress_hidden_backward(dlatent, drope, x, w, norm, angles)
    return draw @ w, draw.T @ x, dnorm


def absorbed_width_backward(ds, q, c, w, R):
    dq, *rest = solved.score_absorbed_backward(ds, q, c, w, R)
    return dq * ((q.shape[1] + R) / (c.shape[1] + R)) ** 0.5, *rest


def layer_without_positions(x, weights, H, angles):
    return solved.mla_from_an_empty_file(x, weights, H, 0 * angles)


def layer_without_a_mask(x, weights, H, angles):
    keep, solved.mask_with_past = solved.mask_with_past, lambda S, T: np.ones((S, T), dtype=bool)
    try:
        return solved.mla_from_an_empty_file(x, weights, H, angles)
    finally:
        solved.mask_with_past = keep


def layer_without_a_scale(x, weights, H, angles):
    width = len(weights["q_b_proj"]) // H
    return solved.mla_from_an_empty_file(x, {**weights, "q_b_proj": weights["q_b_proj"] * width**0.5}, H, angles)


def layer_back_with(**changes):
    """mla_backward, with some of the functions that it calls exchanged."""

    def run(*arguments):
        kept = {name: getattr(solved, name) for name in changes}
        vars(solved).update(changes)
        try:
            return solved.mla_backward(*arguments)
        finally:
            vars(solved).update(kept)

    return run


right_way = solved.compress_hidden_backward
WRONG = [
    ("mask_with_past", lambda S, T: np.tri(S, T, dtype=bool), "starts at key 0"),
    ("mask_with_past", lambda S, T: np.ones((S, T), dtype=bool), "sees key 5, which is its future"),
    ("attention_backward", softmax_without_its_sum, "you left the sum out"),
    ("attention_backward", mean_divided_by_the_keys, "not its mean"),
    ("attention_backward", lambda *a: solved.attention_backward(*a)[::-1], "your dq has shape"),
    ("attention_backward", lambda *a: solved.attention_backward(*a)[0], "return 3 arrays, in this order: dq, dk, dv"),
    ("shared_key_backward", lambda d, J: d.reshape(J, -1, *d.shape[1:]).mean(1), "you average"),
    ("shared_key_backward", lambda d, J: d.reshape(-1, J, *d.shape[1:]).sum(0), "neighbours share"),
    ("expand_latent_backward", key_only, "it is the value too"),
    ("rotate_neighbours", lambda x, a: rotate_halves_forward(x, a)[0], "released weights pair neighbours"),
    ("rotate_neighbours", lambda x, a: solved.rotate_neighbours(x, -a), "the wrong way"),
    ("rotate_neighbours_backward", solved.rotate_neighbours, "turns BACK"),
    ("compress_hidden", per_head_key, "has a head axis"),
    ("compress_hidden", normed_key, "you normed the rope key"),
    ("compress_hidden_backward", keeps_the_root, "the norm's root depends on c as well"),
    ("score_absorbed", absorbed_width, r"\(C \+ R\)"),
    ("score_absorbed_backward", absorbed_width_backward, r"\(C \+ R\)"),
    ("stretch_frequencies", lambda f, s, *_: f / s, "plain interpolation"),
    ("cache_bytes", lambda c, b=2: 512 * 61 * 2, "forgot the rotary key"),
    ("mla_backward", layer_back_with(compress_hidden_backward=lambda d, t, *a: right_way(d, t / 3, *a)), "not average"),
    ("mla_backward", layer_back_with(compress_hidden_backward=lambda d, t, *a: right_way(d, 0 * t, *a)), "no gradient"),
    (
        "mla_backward",
        layer_back_with(compress_hidden_backward=lambda *a: (np.zeros_like(a[2]), *right_way(*a)[1:])),
        "the way through latent and rotary key is missing",
    ),
    ("mla_backward", lambda *a: solved.mla_backward(*a)[0], "return two results|a dict of gradients"),
    ("mla_backward", lambda *a: (solved.mla_backward(*a)[0], {}), "no gradient for kv_a_layernorm"),
    ("mla_from_an_empty_file", layer_without_positions, "nothing turns"),
    ("mla_from_an_empty_file", layer_without_a_mask, "they see their future"),
    ("mla_from_an_empty_file", layer_without_a_scale, "your scores are not scaled"),
]


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_usual_mistake_is_named(name, answer, words):
    with pytest.raises(AssertionError, match=words):
        vars(checks)[f"check_{name}"](answer)


def test_a_gradient_of_the_right_direction_and_the_wrong_size_is_told_the_factor():
    with pytest.raises(AssertionError, match="right direction and 2 times the right size"):
        checks.check_expand_latent_backward(lambda *a: tuple(2 * g for g in solved.expand_latent_backward(*a)))


def test_bounds_read_as_dimensions_are_named():
    def doubled(f, factor, *_):
        ramp = np.clip((np.arange(32) - 20) / 26, 0, 1)
        return inverse_frequencies(64) * (1 - ramp + ramp / factor)

    with pytest.raises(AssertionError, match="dimension indices"):
        checks.check_stretch_frequencies(doubled)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(checks) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
