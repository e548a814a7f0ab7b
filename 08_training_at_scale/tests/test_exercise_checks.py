"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

from pathlib import Path

import pytest

from utils.exercises import load_file

FOLDER = Path(__file__).resolve().parent.parent
CHECKS, SOLVED = load_file(FOLDER / "exercise_checks.py"), load_file(FOLDER / "exercises_solved.py")


def waits_for_nobody(order, F, B):
    """Every rank works through its list without looking at the others."""
    ends = {}
    for p, tasks in enumerate(order):
        now = 0.0
        for kind, m in tasks:
            now = ends[kind, m, p] = now + (F if kind == "F" else B)
    return ends


def copy_by_load_alone(loads, n_slots):
    """The heaviest expert gets every further slot, as its load never falls."""
    copies = [1] * len(loads)
    copies[loads.index(max(loads))] += n_slots - len(loads)
    return copies


def copy_once_each(loads, n_slots):
    """The heaviest experts get one more slot each."""
    top = sorted(range(len(loads)), key=lambda e: -loads[e])[: n_slots - len(loads)]
    return [1 + (e in top) for e in range(len(loads))]


@pytest.mark.parametrize(
    ("exercise", "wrong", "says"),
    [
        ("forwards_ahead", lambda p, P, M: P - p, "one less"),
        ("forwards_ahead", lambda p, P, M: p, "other way round"),
        ("forwards_ahead", lambda p, P, M: P - 1 - p, "no more than 3"),
        ("pipeline_time", lambda P, M, F, B: (P - 1) * (F + B), "bubble alone"),
        ("pipeline_time", lambda P, M, F, B: M * (F + B), "work alone"),
        ("pipeline_time", lambda P, M, F, B: (M + P) * (F + B), "one too many"),
        (
            "crossing_bytes",
            lambda e, own, per, D: sum(x // per != own for x in e) * (3 * D + D // 32),
            "share one crossing",
        ),
        (
            "crossing_bytes",
            lambda e, own, per, D: len({x // per for x in e}) * (3 * D + D // 32),
            "counts the own node",
        ),
        ("crossing_bytes", lambda e, own, per, D: len({x // per for x in e} - {own}) * 3 * D, "scales are missing"),
        ("crossing_bytes", lambda e, own, per, D: len({x // per for x in e} - {own}) * 2 * (D + D // 32), "in BF16"),
        (
            "crossing_bytes",
            lambda e, own, per, D: len({x // per for x in e} - {own}) * (D + D // 32),
            "the way out alone",
        ),
        ("crossing_bytes", lambda e, own, per, D: len({x // per for x in e} - {own}) * 4 * D, "it goes in FP8"),
        ("uncovered_time", lambda b, w, f, df, db: df + db, "journeys of 2 fit"),
        ("uncovered_time", lambda b, w, f, df, db: max(0, df - b - w) + max(0, db - f), "need not wait for MLP"),
        ("uncovered_time", lambda b, w, f, df, db: max(0, df - b) + max(0, db - w - f), "only what is beyond 7"),
        ("uncovered_time", lambda b, w, f, df, db: max(0, df - b - w) + max(0, db - w - f), "one thing at a time"),
        ("training_hours", lambda N, s, tokens, rate: tokens * (2 * N + s) / rate / 3600, "forward pass alone"),
        (
            "training_hours",
            lambda N, s, tokens, rate: tokens * (6 * N + s) / rate / 3600,
            "have a backward pass as well",
        ),
        ("training_hours", lambda N, s, tokens, rate: tokens * 3 * (N + s) / rate / 3600, "two operations"),
        ("training_hours", lambda N, s, tokens, rate: tokens * 3 * (2 * N + s) / rate, "those are seconds"),
        ("count_copies", copy_by_load_alone, "load / copies, which falls"),
        ("count_copies", copy_once_each, "copy the heaviest once each"),
        ("count_copies", lambda loads, n: [round(n * x / sum(loads)) for x in loads], "every expert needs one slot"),
        ("schedule_from_an_empty_file", waits_for_nobody, "before what it waits for"),
        ("schedule_from_an_empty_file", lambda order, F, B: {}, "every task ends once"),
        ("schedule_from_an_empty_file", lambda order, F, B: [1.0], "a dictionary is wanted"),
        ("schedule_from_an_empty_file", lambda order, F, B: {("F", 9, 0): 1.0}, "kind, micro-batch, rank"),
        (
            "schedule_from_an_empty_file",
            lambda o, F, B: {k: v + 1 for k, v in SOLVED.schedule_from_an_empty_file(o, F, B).items()},
            "later than",
        ),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)
