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


WRONG = [
    ("mask_with_past", lambda S, T: np.tri(S, T, dtype=bool), "starts at key 0"),
    ("mask_with_past", lambda S, T: np.ones((S, T), dtype=bool), "sees key 5, which is its future"),
    ("rotate_neighbours", lambda x, a: rotate_halves_forward(x, a)[0], "released weights pair neighbours"),
    ("rotate_neighbours", lambda x, a: solved.rotate_neighbours(x, -a), "the wrong way"),
    ("compress_hidden", per_head_key, "has a head axis"),
    ("compress_hidden", normed_key, "you normed the rope key"),
    ("score_absorbed", absorbed_width, r"\(C \+ R\)"),
    ("stretch_frequencies", lambda f, s, *_: f / s, "plain interpolation"),
    ("cache_bytes", lambda c, b=2: 512 * 61 * 2, "forgot the rotary key"),
]


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_usual_mistake_is_named(name, answer, words):
    with pytest.raises(AssertionError, match=words):
        vars(checks)[f"check_{name}"](answer)


def test_bounds_read_as_dimensions_are_named():
    def doubled(f, factor, *_):
        ramp = np.clip((np.arange(32) - 20) / 26, 0, 1)
        return inverse_frequencies(64) * (1 - ramp + ramp / factor)

    with pytest.raises(AssertionError, match="dimension indices"):
        checks.check_stretch_frequencies(doubled)
