"""A wrong answer is told what is wrong with it."""

from itertools import pairwise

import numpy as np
import pytest

from utils.exercises import ROOT, load_file

CHAPTER = ROOT / "00_language_model"
checks = load_file(CHAPTER / "exercise_checks.py")
solved = load_file(CHAPTER / "exercises_solved.py")


def merge_overlapping(tokens, pair, new):
    out = [new for a, b in pairwise(tokens) if (a, b) == pair]
    return out + [t for t in tokens if t not in pair]


def last_one_wins(dx, token, V):
    d = np.zeros((V, dx.shape[1]))
    d[token] += dx
    return d


def overflowing(logits, target):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-np.log(p[np.arange(len(target)), target]).mean())


def uncorrected(w, dw, m, v, step, rate):
    m, v = 0.9 * m + 0.1 * dw, 0.95 * v + 0.05 * dw**2
    return w - rate * m / (np.sqrt(v) + 1e-8), m, v


def rolling_backwards(w, dw, m, v, step, rate):
    return solved.adam_step(w, dw, m, v, step, rate)[0], 0.1 * m + 0.9 * dw, 0.95 * v + 0.05 * dw**2


def without_the_bend(dz, window, embed, up, head):
    x = embed[window].reshape(len(window), -1)
    dx = (dz @ head @ up).reshape(-1, embed.shape[1])
    return solved.embed_backward(dx, window.ravel(), len(embed)), (dz @ head).T @ x, dz.T @ np.tanh(x @ up.T)


def turned_matrix(dz, window, embed, up, head):
    dembed, dup, dhead = solved.context_backward(dz, window, embed, up, head)
    return dembed, dup.T, dhead


def half_away(x):
    _, power = np.frexp(x)
    step = np.ldexp(1.0, power - 8)
    return np.sign(x) * np.floor(np.abs(x) / step + 0.5) * step


def linear_model(window, target, embed, up, head):
    logits = embed[window].reshape(len(window), -1) @ up.T @ head.T
    rest = solved.language_model_from_an_empty_file(window, target, embed, up, head)[1:]
    return solved.surprise(logits, target), *rest


WRONG = [
    ("merge_pair", merge_overlapping, "the middle 7 is used up"),
    ("merge_pair", lambda t, p, n: [n, *t[2:]] if tuple(t[:2]) == p else t, "only the first place"),
    ("embed_backward", last_one_wins, "only their last gradient"),
    ("embed_backward", lambda dx, t, V: dx, "that is dx itself"),
    ("surprise", overflowing, "subtract the largest logit"),
    ("surprise", lambda z, t: len(t) * solved.surprise(z, t), "the sum over the tokens"),
    ("surprise", lambda z, t: solved.surprise(z, t) / np.log(2), "in bits"),
    ("surprise_backward", lambda z, t: len(t) * solved.surprise_backward(z, t), "divided by N"),
    ("surprise_backward", lambda z, t: -solved.surprise_backward(z, t), "the sign is turned"),
    ("surprise_backward", lambda z, t: (z - np.eye(7)[t]) / 5, "softmax first"),
    ("adam_step", uncorrected, "the correction of the start is missing"),
    ("adam_step", rolling_backwards, "keeps 0.9 of the OLD one"),
    ("bigram_backward", lambda t, z: solved.bigram_backward(t, z).T, "columns what follows"),
    ("context_backward", without_the_bend, "the slope of the bend is missing"),
    ("context_backward", turned_matrix, "its axes are turned around"),
    ("round_to_bf16", lambda x: x.astype(np.float32).astype(np.float64), "should be"),
    ("round_to_bf16", half_away, "halves go to the EVEN neighbour"),
    ("language_model_from_an_empty_file", linear_model, "the tanh is missing"),
]


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_usual_mistake_is_named(name, answer, words):
    with pytest.raises(AssertionError, match=words):
        vars(checks)[f"check_{name}"](answer)


def test_a_gradient_of_the_right_direction_and_the_wrong_size_is_told_the_factor():
    with pytest.raises(AssertionError, match="right direction, 3 times the right size"):
        checks.check_embed_backward(lambda *a: 3 * solved.embed_backward(*a))


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(checks) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
