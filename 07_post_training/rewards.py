"""Rewards by rule: a checker reads the text of an answer and says how right it is. It never runs it.

Run it:    python rewards.py
Notebook:  rewards.ipynb
Source:    arXiv:2412.19437, section 5.2.1 (rule-based rewards where rules can check); arXiv:2501.12948 (accuracy and
           format rewards); the grammar and the guard are ours.
Letters:   none; a rule takes a problem and a text.

The text comes from a model that is being trained to get a reward from it. Whatever a rule lets through will be found:
a rule that asks for order alone is paid for `000`. And a rule that hands the text to `eval` lets the model run code.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

Rule = Callable[[str, str], float]


def sorting_reward(problem: str, text: str) -> float:
    """Give 1 for exactly the digits of the question in rising order and a point, as in `201>` and `012.`."""
    return float(text == "".join(sorted(problem.rstrip(">"))) + ".")


def ordered_reward(problem: str, text: str) -> float:
    """Give 1 for three digits in rising order: a careless rule, which forgets to ask *whose* digits they are."""
    return float(re.fullmatch(r"[0-9]{3}\.", text) is not None and list(text[:3]) == sorted(text[:3]))


def partial_reward(problem: str, text: str) -> float:
    """Give a third for every digit in its place, and nothing without the point at the end."""
    want = sorted(problem.rstrip(">"))
    if re.fullmatch(r"[0-9]{3}\.", text) is None:
        return 0.0
    return sum(a == b for a, b in zip(text, want)) / 3


def addition_reward(problem: str, text: str) -> float:
    """Give 1 for the sum of `12+34=`, written as a plain number and nothing else."""
    a, b = problem.rstrip("=").split("+")
    answer = read_integer(text)
    return float(answer is not None and answer == int(a) + int(b))


def read_integer(text: str, most: int = 20) -> int | None:
    """Read a plain decimal number of at most `most` digits; None for anything else.

    `int` alone is too kind for a judge: it takes spaces, signs, underscores and the digits of every script.
    """
    return int(text) if re.fullmatch(rf"[0-9]{{1,{most}}}", text) else None


def format_reward(problem: str, text: str) -> float:
    """Give 1 for one thought, then one answer, each marked once: <think>...</think><answer>...</answer>."""
    marks = re.findall(r"</?(?:think|answer)>", text)
    shape = re.fullmatch(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", text, re.DOTALL)
    return float(shape is not None and marks == ["<think>", "</think>", "<answer>", "</answer>"])


class Expression(NamedTuple):
    """A checked calculation: its exact value and the numbers that it used."""

    value: Fraction
    numbers: list[int]


def read_expression(text: str, longest: int = 64) -> Expression:
    """Calculate with + - * / and brackets, exactly, and refuse everything else.

        sum = product (+|- product)*      product = atom (*|/ atom)*      atom = number | ( sum )

    There are no names, no powers and no calls in this grammar, so there is nothing to attack and nothing that takes
    long: the work is bounded by the length of the text.

    Raises:
        ValueError: longer than `longest`, a letter that the grammar lacks, an open bracket, a division by zero.
    """
    if len(text) > longest:
        raise ValueError(f"{len(text)} characters; at most {longest} are read")
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    if "".join(tokens) != re.sub(r"[ \t]", "", text):
        raise ValueError("only digits, + - * / and brackets are read")
    value, used, place = _read_sum(tokens, 0)
    if place != len(tokens):
        raise ValueError(f"{tokens[place]!r} comes where the calculation should have ended")
    return Expression(value, used)


def _read_sum(tokens: list[str], place: int) -> tuple[Fraction, list[int], int]:
    """sum = product (+|- product)*; returns value, numbers used, and where it stopped."""
    value, used, place = _read_product(tokens, place)
    while place < len(tokens) and tokens[place] in "+-":
        more, numbers, after = _read_product(tokens, place + 1)
        value, used, place = (value + more if tokens[place] == "+" else value - more), used + numbers, after
    return value, used, place


def _read_product(tokens: list[str], place: int) -> tuple[Fraction, list[int], int]:
    """product = atom (*|/ atom)*."""
    value, used, place = _read_atom(tokens, place)
    while place < len(tokens) and tokens[place] in "*/":
        more, numbers, after = _read_atom(tokens, place + 1)
        if tokens[place] == "/" and more == 0:
            raise ValueError("a division by zero")
        value, used, place = (value * more if tokens[place] == "*" else value / more), used + numbers, after
    return value, used, place


def _read_atom(tokens: list[str], place: int) -> tuple[Fraction, list[int], int]:
    """atom = number | ( sum )."""
    if place < len(tokens) and tokens[place].isdigit():
        return Fraction(int(tokens[place])), [int(tokens[place])], place + 1
    if place < len(tokens) and tokens[place] == "(":
        value, used, place = _read_sum(tokens, place + 1)
        if place < len(tokens) and tokens[place] == ")":
            return value, used, place + 1
    raise ValueError("a number or a closed bracket is missing")


def countdown_reward(problem: str, text: str) -> float:
    """Give 1 for a calculation that reaches the goal with exactly the given numbers: `3 5 7 -> 22`, `(3 * 5) + 7`."""
    given, goal = problem.split("->")
    try:
        value, used = read_expression(text)
    except ValueError:
        return 0.0
    return float(value == int(goal) and Counter(used) == Counter(map(int, given.split())))


class Tally(NamedTuple):
    """What a rule said about a batch of texts."""

    rewards: list[float]
    refused: Counter  # how often the rule itself failed, by the kind of failure


def judge_answers(rule: Rule, problems: list[str], texts: list[str]) -> Tally:
    """Apply a rule that may be somebody else's: what it gets wrong is counted, gives 0, and stops nothing.

    A rule that never returns cannot be stopped from within; the package runs rules in a process of their own.

    Raises:
        ValueError: texts and problems are not pairs.
    """
    if len(problems) != len(texts):
        raise ValueError(f"{len(problems)} problems and {len(texts)} texts: every text needs its own problem")
    rewards, refused = [], Counter()
    for problem, text in zip(problems, texts):
        try:
            reward = rule(problem, text)
            if isinstance(reward, str) or not math.isfinite(reward):
                refused[f"returned {reward!r}"] += 1
                reward = 0.0
        except Exception as error:  # a rule is code of a user: anything may come
            refused[type(error).__name__] += 1
            reward = 0.0
        rewards.append(float(reward))
    return Tally(rewards, refused)


def main() -> None:
    """Print what the rules say to good answers, to bad ones, and to attacks."""
    print("sorting 201>   strict  careless  partial")
    for text in ("012.", "021.", "012", "000.", "0123."):
        marks = [rule("201>", text) for rule in (sorting_reward, ordered_reward, partial_reward)]
        print(f"  {text:<12} {marks[0]:^6.2f}  {marks[1]:^8.2f}  {marks[2]:^7.2f}")
    print("countdown: reach 22 with 3, 5 and 7")
    for text in ("3*5+7", "(3+5)*7", "22", "3*5+7+0", "9**9**9**9", "__import__('os').system('id')"):
        print(f"  {text:<30} {countdown_reward('3 5 7 -> 22', text):.0f}")
    rules = {"7": 1.0, "8": float("nan"), "9": "1"}
    tally = judge_answers(lambda _, text: rules[text], ["p"] * 4, ["7", "8", "9", "10"])
    print(f"a rule that fails: rewards {tally.rewards}, counted {dict(tally.refused)}")


if __name__ == "__main__":
    main()
