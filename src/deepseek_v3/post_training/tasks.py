"""Problems whose answers a rule can check: seeded, exact, and split so that what is held out is really new.

    task = find_task("addition")
    problem = task.draw(rng)                     {"prompt": "123+456=", "key": "123+456", ...}
    task.reward(problem, "975")                  1.0          the sum's digits, units first
    task.demonstrate(problem)                    "975"        what supervised fine-tuning shows

A problem is what JSON can hold and has a prompt. `key` names it whatever the order of its numbers: 1+2 is 2+1, and both
are on one side of the split. This module imports no PyTorch: the process that judges answers loads it.

Your own task is a Python file with `problems()`, a list of such dictionaries or of prompts, and
`reward(problem, text)`, a number; with `demonstrate(problem)` it can be fine-tuned on too. It is loaded by its path.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations, product
from typing import Any, NamedTuple

from deepseek_v3.post_training.expression import read_calculation

Problem = dict[str, Any]
HELD_OUT = 0.1  # of all keys
MARK = "="  # of countdown with a trace: what follows the last line's mark is the answer


class Task(NamedTuple):
    """How problems are drawn, judged and solved."""

    name: str
    draw: Callable[[random.Random], Problem]
    reward: Callable[[Problem, str], float]
    demonstrate: Callable[[Problem], str]
    longest: int  # characters of an answer


def is_held_out(key: str, share: float = HELD_OUT) -> bool:
    """Say on which side of the split a problem stands: by the hash of its key, for good."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") < share * 2**48


def draw_problems(task: Task, seed: str, *, held_out: bool) -> Iterator[Problem]:
    """Draw problems of one side without end; the same ones for the same seed."""
    rng = random.Random(f"{task.name} {seed} {held_out}")
    while True:
        problem = task.draw(rng)
        if is_held_out(problem["key"]) == held_out:
            yield problem


def different_problems(task: Task, seed: str, count: int, *, held_out: bool) -> list[Problem]:
    """Return up to `count` problems with different keys; fewer where a task has no more."""
    found: dict[str, Problem] = {}
    for tries, problem in enumerate(draw_problems(task, seed, held_out=held_out)):
        found.setdefault(problem["key"], problem)
        if len(found) == count or tries > 50 * count:
            break
    return list(found.values())


# -- addition ----------------------------------------------------------------------------------------------------------


def make_addition(digits: int = 3) -> Task:
    """Two numbers of up to so many digits; the sum is written units first: a carry is known when it is needed."""

    def draw(rng: random.Random) -> Problem:
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        return {"prompt": f"{a}+{b}=", "key": f"{min(a, b)}+{max(a, b)}", "sum": a + b}

    def reward(problem: Problem, text: str) -> float:
        return float(text == str(problem["sum"])[::-1])

    return Task("addition", draw, reward, lambda problem: str(problem["sum"])[::-1], digits + 1)


# -- reverse and sort --------------------------------------------------------------------------------------------------


def make_reverse(letters: int = 6) -> Task:
    """Letters to write backwards."""

    def draw(rng: random.Random) -> Problem:
        text = "".join(rng.choice("abcdefghij") for _ in range(letters))
        return {"prompt": text + ">", "key": min(text, text[::-1]), "text": text}

    return Task("reverse", draw, lambda p, text: float(text == p["text"][::-1]), lambda p: p["text"][::-1], letters)


def make_sort(digits: int = 6) -> Task:
    """Digits to put in rising order; the same digits in another order are the same problem to the split."""

    def draw(rng: random.Random) -> Problem:
        text = "".join(rng.choice("0123456789") for _ in range(digits))
        return {"prompt": text + ">", "key": "".join(sorted(text))}

    return Task("sort", draw, lambda p, text: float(text == p["key"]), lambda p: p["key"], digits)


# -- countdown ---------------------------------------------------------------------------------------------------------


def make_countdown(numbers: int = 3, most: int = 9, *, trace: bool = False) -> Task:
    """Reach a goal with each of the given numbers once.

    Args:
        trace: answers show what was tried: `3+5+7:15 3*5+7:22 =3*5+7`.
    """

    def draw(rng: random.Random) -> Problem:
        while True:
            given = [rng.randint(1, most) for _ in range(numbers)]
            ways = [(way, value) for way, value in _ways(given) if 0 < value <= 99]
            goal = rng.choice(ways)[1]
            key = " ".join(map(str, sorted(given))) + f" {goal}"
            return {"prompt": f"{' '.join(map(str, given))}>{goal}:", "key": key, "given": given, "goal": goal}

    def reward(problem: Problem, text: str) -> float:
        answer = text.rpartition(MARK)[2] if trace else text
        found = read_calculation(answer)
        right = found is not None and found.value == problem["goal"]
        return float(right and Counter(found.numbers) == Counter(problem["given"])) if found else 0.0

    def demonstrate(problem: Problem) -> str:
        rng = random.Random(problem["prompt"])
        ways = list(_ways(problem["given"]))
        right = rng.choice([way for way, value in ways if value == problem["goal"]])
        if not trace:
            return right
        tried = [f"{way}:{value}" for way, value in rng.sample(ways, min(3, len(ways))) if value != problem["goal"]]
        return " ".join([*tried, f"{right}:{problem['goal']}", MARK + right])

    return Task("countdown-search" if trace else "countdown", draw, reward, demonstrate, 64 if trace else 16)


def _ways(given: list[int]) -> Iterator[tuple[str, int]]:
    """Every calculation without brackets that uses the numbers once and stays whole."""
    for order in dict.fromkeys(permutations(given)):
        for signs in product("+-*", repeat=len(order) - 1):
            text = str(order[0]) + "".join(sign + str(number) for sign, number in zip(signs, order[1:]))
            found = read_calculation(text)
            if found is not None and found.value.denominator == 1:
                yield text, int(found.value)


TASKS: dict[str, Callable[[], Task]] = {
    "addition": make_addition,
    "reverse": make_reverse,
    "sort": make_sort,
    "countdown": make_countdown,
    "countdown-search": lambda: make_countdown(trace=True),
}
SIZED = {"addition": make_addition, "reverse": make_reverse, "sort": make_sort, "countdown": make_countdown}


def find_task(name: str) -> Task:
    """Return a task by its name; `addition:2` is addition of two digits.

    Raises:
        ValueError: there is none of that name, or a size that it cannot have.
    """
    plain, _, size = name.partition(":")
    if plain not in TASKS or (size and plain not in SIZED):
        raise ValueError(f"there is no task {name!r}; choose one of {', '.join(TASKS)}, or name a .py file of your own")
    if not size:
        return TASKS[plain]()
    if not re.fullmatch("[1-9]", size) or (plain == "countdown" and size not in "234"):
        raise ValueError(f"{name!r}: the size behind the colon must be 1 to 9 (countdown: 2 to 4)")
    return SIZED[plain](int(size))
