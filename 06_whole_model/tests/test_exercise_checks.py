"""The grader says what is wrong, not only that it is."""

from pathlib import Path

import pytest

from utils.exercises import load_file

CHAPTER = Path(__file__).resolve().parent.parent
CHECKS = load_file(CHAPTER / "exercise_checks.py")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda x, n1, a, n2, f: f(n2(a(n1(x)))), "both residuals are missing"),
        (lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x)), "parallel branches"),
        (lambda x, n1, a, n2, f: x + a(n1(x)) + f(x + a(n1(x))), "without its norm"),
        (lambda x, n1, a, n2, f: n2(n1(x + a(x)) + f(n1(x + a(x)))), "post-norm"),
        (lambda x, n1, a, n2, f: x[0], "returned shape"),
    ],
)
def test_wrong_wirings_are_recognised(layer, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_run_layer(layer)


@pytest.mark.parametrize(
    ("back", "words"),
    [
        (lambda d, n1, a, n2, f: n1(a(n2(f(d)))), "the stream passes dy on"),
        (lambda d, n1, a, n2, f: d + n2(f(d)) + n1(a(d)), "the first branch gets da"),
        (lambda d, n1, a, n2, f: (d + n1(a(d))) + n2(f(d + n1(a(d)))), "comes first on the way back"),
        (lambda d, n1, a, n2, f: n1(a(d + n2(f(d)))), "beside the first branch"),
    ],
)
def test_wrong_ways_back_are_recognised(back, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_pass_layer_back(back)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mtp.0.enorm.weight"], "files say layers.61"),
        (["model.layers.62.enorm.weight"], "count from 0"),
        ([f"model.layers.61.{n}.weight" for n in ("enorm", "hnorm", "eh_proj", "shared_head.norm")], "repeats them"),
        (["model.layers.61.lm_head.weight"], "shared_head.head"),
    ],
)
def test_wrong_names_are_recognised(names, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_name_mtp_tensors(lambda config: names)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(CHECKS) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
