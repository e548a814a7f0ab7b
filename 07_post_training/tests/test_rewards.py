"""Rules say what they should, read text and never run it, and fail without stopping anything."""

import builtins
import time
from collections import Counter
from fractions import Fraction

import pytest
from rewards import (
    addition_reward,
    countdown_reward,
    format_reward,
    judge_answers,
    ordered_reward,
    partial_reward,
    read_expression,
    read_integer,
    sorting_reward,
)


@pytest.mark.parametrize(
    ("text", "strict", "careless", "partial"),
    [
        ("012.", 1, 1, 1),
        ("021.", 0, 0, 1 / 3),
        ("000.", 0, 1, 1 / 3),
        ("012", 0, 0, 0),
        ("0123.", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_the_rules_of_sorting_differ_where_they_are_meant_to(text, strict, careless, partial):
    got = [rule("201>", text) for rule in (sorting_reward, ordered_reward, partial_reward)]
    assert got == [strict, careless, pytest.approx(partial)]


@pytest.mark.parametrize("text", ["46 ", "+46", "4_6", "٤٦", "46.0", "0x2e", "46\n", "", "1" * 21])
def test_a_number_is_plain_digits_and_nothing_that_int_would_take_besides(text):
    assert read_integer(text) is None
    assert addition_reward("12+34=", text) == 0


def test_sums_are_checked():
    assert addition_reward("12+34=", "46") == 1
    assert addition_reward("12+34=", "47") == 0


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("3*5+7", 22, [3, 5, 7]),
        ("(3 + 5) * 7", 56, [3, 5, 7]),
        ("8-3-2", 3, [8, 3, 2]),
        ("7/2*2", 7, [7, 2, 2]),
        ("1/3+1/6", Fraction(1, 2), [1, 3, 1, 6]),
        ("((4))", 4, [4]),
    ],
)
def test_calculations_are_exact_and_bind_as_at_school(text, value, numbers):
    assert read_expression(text) == (value, numbers)


ATTACKS = [
    "__import__('os').system('id')",
    "9**9**9**9",
    "open('/etc/passwd').read()",
    "(lambda: 22)()",
    "22#",
    "1//0",
    "1/0",
    "1/(2-2)",
    "3*5+",
    "(3*5",
    "3 5",
    "-3",
    "",
    "(" * 65,
    "3*5+7;0",
    "٣*5+7",
    "1e9",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_what_is_no_calculation_is_refused_at_once_and_never_run(text, monkeypatch):
    def alarm(*_, **__):
        raise SystemError("the text of a model was executed")

    for name in ("eval", "exec", "compile", "open", "__import__"):
        monkeypatch.setattr(builtins, name, alarm)
    start = time.perf_counter()
    try:
        reward = countdown_reward("3 5 7 -> 22", text)
    finally:
        monkeypatch.undo()
    assert reward == 0
    assert time.perf_counter() - start < 1


def test_the_goal_must_be_reached_with_exactly_the_numbers_given():
    assert countdown_reward("3 5 7 -> 22", "7 + 3*5") == 1
    for text in ("22", "3*5+7+0", "3*5+3+7-3", "7*3+1", "(3+5)*7"):
        assert countdown_reward("3 5 7 -> 22", text) == 0
    assert countdown_reward("3 3 2 -> 8", "3+3+2") == 1
    assert countdown_reward("3 3 2 -> 8", "3+5") == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>a\nb</think>\n<answer>c</answer>\n", 1),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("b", 0),
    ],
)
def test_the_format_is_one_thought_and_one_answer(text, want):
    assert format_reward("p", text) == want


def test_a_rule_that_fails_is_counted_and_stops_nothing():
    def rule(problem, text):
        return {"good": 1.0, "nan": float("nan"), "inf": float("inf"), "string": "1"}[text]

    tally = judge_answers(rule, ["p"] * 5, ["good", "nan", "inf", "string", "raises"])
    assert tally.rewards == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert tally.refused == Counter({"returned nan": 1, "returned inf": 1, "returned '1'": 1, "KeyError": 1})


def test_every_text_is_judged_by_its_own_problem():
    tally = judge_answers(sorting_reward, ["201>", "543>"], ["012.", "345."])
    assert tally.rewards == [1.0, 1.0]
    with pytest.raises(ValueError, match="every text needs its own problem"):
        judge_answers(sorting_reward, ["201>"], ["012.", "345."])
