"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHECKS = load_file(Path(__file__).resolve().parent.parent / "exercise_checks.py")


def residual(p, q):
    return np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()


def rms(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("exercise", "wrong", "says"),
    [
        (
            "further_targets",
            lambda t, k, d: np.where(d[:, : 10 - k] == d[:, k + 1 :], t[:, k:10], -100),
            "learn to copy",
        ),
        (
            "further_targets",
            lambda t, k, d: np.where(d[:, : 10 - k] == d[:, 1 : 11 - k], t[:, k + 1 :], -100),
            "i and i",
        ),
        ("further_targets", lambda t, k, d: t[:, k + 1 :], "next document count"),
        ("further_targets", lambda t, k, d: t, "one for each target"),
        (
            "join_pair",
            lambda h, e, we, wh, m: np.concatenate([rms(h) * wh, rms(e) * we], -1) @ m.T,
            "order of the paper",
        ),
        ("join_pair", lambda h, e, we, wh, m: np.concatenate([e, h], -1) @ m.T, "neither input is normalized"),
        ("join_pair", lambda h, e, we, wh, m: np.concatenate([rms(e) * wh, rms(h) * we], -1) @ m.T, "exchanged"),
        ("loss_gradient", lambda z, t, n: (softmax(z) - np.eye(7)[t % 7]) * (t >= 0)[:, None], "divisor is missing"),
        ("loss_gradient", lambda z, t, n: softmax(z) * (t >= 0)[:, None] / n, "one-hot of the target is missing"),
        ("loss_gradient", lambda z, t, n: (np.eye(7)[t % 7] - softmax(z)) * (t >= 0)[:, None] / n, "sign is turned"),
        ("loss_gradient", lambda z, t, n: (softmax(z) - np.eye(7)[t % 7]) / n, "gradient of exactly zero"),
        ("check_draft", lambda rng, d, q, p: d, "without a check"),
        ("check_draft", lambda rng, d, q, p: d if rng.random() < p[d] / q[d] else rng.choice(3, p=p), "draw from p"),
        (
            "check_draft",
            lambda rng, d, q, p: d if rng.random() < p[d] else rng.choice(3, p=residual(p, q)),
            "with prob",
        ),
        ("check_draft", lambda rng, d, q, p: rng.choice(3, p=p), "must always pass"),
        ("tokens_per_step", lambda a, k: 1 + k * a, "thrown away"),
        ("tokens_per_step", lambda a, k: sum(a**i for i in range(1, k + 1)), "own token is missing"),
        ("rows_to_keep", lambda n, m: (n + m, n), "one row more"),
        ("rows_to_keep", lambda n, m: (n + m + 1, n + m + 1), "redone with real rows"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)
