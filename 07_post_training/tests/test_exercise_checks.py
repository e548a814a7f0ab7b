"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

FOLDER = Path(__file__).resolve().parent.parent
CHECKS, SOLVED = load_file(FOLDER / "exercise_checks.py"), load_file(FOLDER / "exercises_solved.py")


def centered(r):
    return r - r.mean(axis=1, keepdims=True)


def pooled_grpo(logp, old, written, reward, clip):
    """DAPO's divisor in GRPO's place."""
    a, r = SOLVED.group_advantage(reward).reshape(-1, 1), np.exp(logp - old)
    weight = written / written.sum()
    least = np.minimum(r * a, r.clip(1 - clip, 1 + clip) * a)
    return -float((weight * least).sum()), -weight * a * r


def unclipped_gradient(logp, old, written, reward, clip):
    loss, _ = SOLVED.grpo_from_an_empty_file(logp, old, written, reward, clip)
    a = SOLVED.group_advantage(reward).reshape(-1, 1)
    return loss, -1.0 * written * a * np.exp(logp - old) / (len(logp) * written.sum(axis=1, keepdims=True))


def plain_eval(problem, text):
    first, second = problem.rstrip("=").split("+")
    return float(eval(text) == int(first) + int(second))


def plain_int(problem, text):
    return float(int(text) == 46)


def kind_int(problem, text):
    try:
        return plain_int(problem, text)
    except ValueError:
        return 0.0


def ratio(z, o):
    return np.exp(z - o)


@pytest.mark.parametrize(
    ("exercise", "wrong", "says"),
    [
        ("targets_of_answers", lambda t, m: np.where(m[:, :-1], t[:, 1:], -100), "never learned"),
        ("targets_of_answers", lambda t, m: t[:, 1:], "question count too"),
        ("targets_of_answers", lambda t, m: np.where(m, t, -100)[:, :-1], "it copies"),
        ("targets_of_answers", lambda t, m: np.where(m, t, -100), "6 next tokens"),
        ("judge_sum", plain_eval, "made your rule raise|calculated"),
        ("judge_sum", plain_int, "made your rule raise ValueError"),
        ("judge_sum", kind_int, "int.. takes it"),
        ("group_advantage", centered, "Dr. GRPO"),
        ("group_advantage", lambda r: (r - r.mean()) / r.std(), "own group"),
        ("group_advantage", lambda r: centered(r) / r.std(axis=1, ddof=1, keepdims=True), "not M-1"),
        ("group_advantage", lambda r: centered(r) / r.std(axis=1, keepdims=True), "not NaN"),
        ("clipped_slope", lambda z, o, a, c: -a * ratio(z, o), "nothing is clipped"),
        (
            "clipped_slope",
            lambda z, o, a, c: -a * ratio(z, o) * ((ratio(z, o) > 1 - c) & (ratio(z, o) < 1 + c)),
            "both sides",
        ),
        ("clipped_slope", lambda z, o, a, c: -a * ratio(z, o).clip(1 - c, 1 + c), "slope is 0"),
        ("clipped_slope", lambda z, o, a, c: -SOLVED.clipped_slope(z, o, a, c), "sign is turned"),
        ("kl_slope", lambda z, f: np.exp(f - z) - 1, "sign is turned"),
        ("kl_slope", lambda z, f: 1 - np.exp(z - f), "other way up"),
        ("kl_slope", lambda z, f: -np.exp(f - z), "has a slope too"),
        ("replayed_gates", lambda w, x, i: np.take_along_axis(1 / (1 + np.exp(-x @ w.T)), i, 1), "sum to one"),
        (
            "replayed_gates",
            lambda w, x, i: SOLVED.replayed_gates(w, x, np.argsort(-x @ w.T, axis=1)[:, :2]),
            "choose anew",
        ),
        ("grpo_from_an_empty_file", pooled_grpo, "DAPO"),
        ("grpo_from_an_empty_file", unclipped_gradient, "not the slope of your loss"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)
