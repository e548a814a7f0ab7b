"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

import re
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


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def hot(z, t):
    return np.eye(z.shape[1])[t]


def others(r):
    return r.sum(axis=1, keepdims=True) - r


def cut_off(problem, text):
    """A pattern that looks at the beginning of the text only."""
    found = re.match("[0-9]{1,9}", text)
    return float(bool(found) and int(found.group()) == 46)


def end_of_line(problem, text):
    return float(bool(re.match("[0-9]{1,9}$", text)) and int(text) == 46)


def any_length(problem, text):
    return float(bool(re.fullmatch("[0-9]+", text)) and int(text) == 46)


def one_token_each(dgate, router, x, index):
    """Rows of the router overwritten where tokens share an expert."""
    s = np.take_along_axis(1 / (1 + np.exp(-x @ router.T)), index, axis=1)
    total = s.sum(axis=1, keepdims=True)
    ds = (dgate - (dgate * s / total).sum(axis=1, keepdims=True)) / total
    d = np.zeros_like(router)
    d[index] = (ds * s * (1 - s))[..., None] * x[:, None]
    return d


def total_is_a_constant(dgate, router, x, index):
    s = np.take_along_axis(1 / (1 + np.exp(-x @ router.T)), index, axis=1)
    d = np.zeros_like(router)
    np.add.at(d, index, (dgate / s.sum(axis=1, keepdims=True) * s * (1 - s))[..., None] * x[:, None])
    return d


def grpo_with(gain=None, advantage=None, weight=None):
    """GRPO with one thing replaced: the gain of a token, advantages or weights; its gradient is not reached."""

    def answer(logp, old, written, reward, clip):
        a = (advantage or SOLVED.group_advantage)(reward).reshape(-1, 1)
        r = np.exp(logp - old)
        each = gain(r, a, clip) if gain else np.minimum(r * a, r.clip(1 - clip, 1 + clip) * a)
        w = weight(written) if weight else written / (len(logp) * written.sum(axis=1, keepdims=True))
        return -float((w * each).sum()), np.zeros_like(logp)

    return answer


def turned_gain(r, a, c):
    return np.minimum(a / r, (1 / r).clip(1 - c, 1 + c) * a)


def ratio(z, o):
    return np.exp(z - o)


@pytest.mark.parametrize(
    ("exercise", "wrong", "says"),
    [
        ("log_probs_backward", lambda g, z, t: g[:, None] * (softmax(z) - hot(z, t)), "sign is turned"),
        ("log_probs_backward", lambda g, z, t: g[:, None] * hot(z, t), "under the logarithm"),
        ("log_probs_backward", lambda g, z, t: -g[:, None] * softmax(z), "one-hot"),
        ("log_probs_backward", lambda g, z, t: hot(z, t) - softmax(z), "g is missing"),
        ("targets_of_answers", lambda t, m: np.where(m[:, :-1], t[:, 1:], -100), "never learned"),
        ("targets_of_answers", lambda t, m: t[:, 1:], "question count too"),
        ("targets_of_answers", lambda t, m: np.where(m, t, -100)[:, :-1], "it copies"),
        ("targets_of_answers", lambda t, m: np.where(m, t, -100), "6 next tokens"),
        ("judge_sum", plain_eval, "made your rule raise|calculated"),
        ("judge_sum", plain_int, "made your rule raise ValueError"),
        ("judge_sum", kind_int, "int.. may take it"),
        ("judge_sum", cut_off, "fullmatch, not match"),
        ("judge_sum", end_of_line, "a line break"),
        ("judge_sum", any_length, "5,000 digits made your rule raise"),
        ("advantage_over_others", centered, "holds the own reward"),
        ("advantage_over_others", lambda r: r - others(r) / r.shape[1], "one less"),
        ("advantage_over_others", lambda r: others(r) / (r.shape[1] - 1), "that is the baseline"),
        ("advantage_over_others", lambda r: r - (r.sum() - r) / (r.size - 1), "pool all"),
        ("group_advantage", lambda r: (r - r.mean(axis=0)) / r.std(axis=0), "over questions"),
        ("group_advantage", lambda r: centered(r) / (r.std(axis=1, keepdims=True) + 1e-6), "something small is added"),
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
        (
            "clipped_slope",
            lambda z, o, a, c: -a * ratio(z, o) * np.where(a >= 0, ratio(z, o) >= 1 - c, ratio(z, o) <= 1 + c),
            "edges are exchanged",
        ),
        ("kl_slope", lambda z, f: -np.exp(f - z) - 1, "stands with a minus"),
        ("kl_slope", lambda z, f: np.exp(f - z) - 1, "sign is turned"),
        ("kl_slope", lambda z, f: 1 - np.exp(z - f), "other way up"),
        ("kl_slope", lambda z, f: -np.exp(f - z), "has a slope too"),
        ("replayed_gates", lambda w, x, i: np.take_along_axis(1 / (1 + np.exp(-x @ w.T)), i, 1), "sum to one"),
        (
            "replayed_gates",
            lambda w, x, i: SOLVED.replayed_gates(w, x, np.argsort(-x @ w.T, axis=1)[:, :2]),
            "choose anew",
        ),
        (
            "replayed_gates",
            lambda w, x, i: (u := np.take_along_axis(x @ w.T, i, 1)) / u.sum(1, keepdims=True),
            "logits",
        ),
        ("replayed_gates_backward", lambda d, w, x, i: np.zeros_like(w), "have a slope"),
        ("replayed_gates_backward", total_is_a_constant, "total has a slope"),
        ("replayed_gates_backward", one_token_each, "last token only"),
        ("reverse_kl_slope", lambda t, s: softmax(s) - softmax(t), "forward divergence"),
        ("reverse_kl_slope", lambda t, s: softmax(s) * np.log(softmax(s) / softmax(t)), "mean is missing"),
        ("reverse_kl_slope", lambda t, s: -SOLVED.reverse_kl_slope(t, s), "sign is turned"),
        ("grpo_from_an_empty_file", grpo_with(gain=lambda r, a, c: r * a), "nothing is clipped"),
        (
            "grpo_from_an_empty_file",
            grpo_with(gain=lambda r, a, c: np.maximum(r * a, r.clip(1 - c, 1 + c) * a)),
            "larger of the two",
        ),
        ("grpo_from_an_empty_file", grpo_with(gain=turned_gain), "wrong way up"),
        ("grpo_from_an_empty_file", grpo_with(advantage=lambda r: SOLVED.group_advantage(r).T), "by columns"),
        ("grpo_from_an_empty_file", grpo_with(advantage=centered), "Dr. GRPO"),
        ("grpo_from_an_empty_file", grpo_with(weight=lambda w: w / w.size), "divided by S"),
        ("grpo_from_an_empty_file", grpo_with(weight=lambda w: np.ones(w.shape) / w.size), "not written count"),
        ("grpo_from_an_empty_file", pooled_grpo, "DAPO"),
        ("grpo_from_an_empty_file", unclipped_gradient, "not the slope of your loss"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)
