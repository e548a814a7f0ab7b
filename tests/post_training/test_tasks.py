"""Tasks: the same problems for the same seed, exact checkers, a split that no order of numbers leaks through."""

from fractions import Fraction
from itertools import islice

import pytest

from deepseek_v3.post_training.expression import read_calculation
from deepseek_v3.post_training.tasks import TASKS, different_problems, draw_problems, find_task, is_held_out


@pytest.mark.parametrize("name", TASKS)
def test_every_demonstration_is_right_and_fits(name):
    task = find_task(name)
    for problem in islice(draw_problems(task, "7", held_out=False), 40):
        text = task.demonstrate(problem)
        assert task.reward(problem, text) == 1.0, (problem, text)
        assert len(text) <= task.longest
        assert task.reward(problem, text + "0") == 0.0
        assert task.reward(problem, "") == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_draws_the_same_and_no_key_is_on_both_sides(name):
    task = find_task(name)
    one, again = (list(islice(draw_problems(task, "3", held_out=False), 30)) for _ in range(2))
    assert one == again
    assert one != list(islice(draw_problems(task, "4", held_out=False), 30))
    held_out = {p["key"] for p in different_problems(task, "3", 20, held_out=True)}
    assert held_out
    assert not held_out & {p["key"] for p in one}


def test_a_sum_is_on_one_side_whatever_the_order_of_its_numbers():
    task = find_task("addition:2")
    for problem in islice(draw_problems(task, "1", held_out=True), 20):
        a, b = problem["prompt"].rstrip("=").split("+")
        assert problem["key"] == "+".join(sorted((a, b), key=int))
        assert is_held_out(problem["key"])
        assert task.reward(problem, str(int(a) + int(b))[::-1]) == 1.0


def test_an_answer_of_a_sum_is_its_digits_and_nothing_else():
    task = find_task("addition")
    problem = {"prompt": "123+456=", "key": "123+456", "sum": 579}
    assert task.reward(problem, "975") == 1.0
    for text in ("579", " 975", "975 ", "+975", "0975", "9750", "٩٧٥", "97_5"):
        assert task.reward(problem, text) == 0.0


def test_countdown_wants_every_number_once_and_only_the_last_answer_of_a_trace_counts():
    problem = {"prompt": "3 5 7>22:", "key": "3 5 7 22", "given": [3, 5, 7], "goal": 22}
    plain, trace = find_task("countdown"), find_task("countdown-search")
    for text, right in (("3*5+7", 1), ("(3*5)+7", 1), ("22", 0), ("3*5+7+0", 0), ("7+15", 0), ("3*5+8", 0)):
        assert plain.reward(problem, text) == right, text
    assert trace.reward(problem, "3+5+7:15 3*5+7:22 =3*5+7") == 1.0
    assert trace.reward(problem, "=3*5+7 =3+5+7") == 0.0
    assert trace.reward(problem, "3*5+7") == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 5 * 7", 38), ("(3+5)*7", 56), ("8-2-1", 5), ("8/2/2", 2), ("1/3+1/6", Fraction(1, 2)),
        ("2*(3-(4-6))", 10), ("((7))", 7), ("3-5", -2),
    ],
)  # fmt: skip
def test_a_calculation_is_worked_out_exactly(text, value):
    found = read_calculation(text)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "3+", "+3", "-3", "3 5", "(3", "3)", "1/0", "4/(2-2)", "9**9", "3(5)", "(3)(5)", "3.5", "1e9",
        "__import__('os').system('id')", "x", "3\n+5", "9" * 10, "1+" * 40 + "1", ")3(", "٣+1", "3+*5",
    ],
)  # fmt: skip
def test_what_is_no_calculation_has_no_value(text):
    assert read_calculation(text) is None


@pytest.mark.parametrize("name", ["", "subtraction", "addition:0", "addition:x", "countdown:5", "countdown-search:3"])
def test_a_task_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=r"task|size"):
        find_task(name)
