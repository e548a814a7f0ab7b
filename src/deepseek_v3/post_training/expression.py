"""Calculations as text, read and never run: exact values of + - * / and brackets, and the numbers that were used.

    read_calculation("(3 + 5) * 7")   ->   Calculation(value=Fraction(56), numbers=(3, 5, 7))

There are no names, powers or calls in this grammar, so there is nothing to attack, and the work is bounded by the
length of the text. Two stacks, one of values and one of signs: a sign waits until what binds tighter is worked out.
"""

import re
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import NamedTuple

LONGEST, MOST_DIGITS = 64, 9
BINDS = {"+": (1, add), "-": (1, sub), "*": (2, mul), "/": (2, truediv)}


class Calculation(NamedTuple):
    """A value, and the numbers that stand in it in order."""

    value: Fraction
    numbers: tuple[int, ...]


def read_calculation(text: str) -> Calculation | None:
    """Work out a calculation; None for whatever is none: another letter, an open bracket, a division by zero."""
    pieces = re.findall(r"[0-9]+|[-+*/()]", text) if len(text) <= LONGEST else []
    if not pieces or "".join(pieces) != re.sub(" ", "", text) or max(map(len, pieces)) > MOST_DIGITS:
        return None
    if re.search(r"[0-9] +[0-9]", text):  # two numbers that a space alone keeps apart
        return None
    values: list[Fraction] = []
    signs: list[str] = []
    numbers: list[int] = []
    wants_value = True
    try:
        for piece in pieces:
            if wants_value != (piece.isdigit() or piece == "("):
                return None
            if piece.isdigit():
                numbers.append(int(piece))
                values.append(Fraction(int(piece)))
                wants_value = False
            elif piece == "(":
                signs.append(piece)
            elif piece == ")":
                _settle(values, signs, 0)
                if not signs or signs.pop() != "(":
                    return None
            else:
                _settle(values, signs, BINDS[piece][0])
                signs.append(piece)
                wants_value = True
        if wants_value:
            return None
        _settle(values, signs, 0)
    except ZeroDivisionError:
        return None
    return None if signs else Calculation(values[0], tuple(numbers))


def _settle(values: list[Fraction], signs: list[str], least: int) -> None:
    """Work out the signs that bind at least so tightly, back to the last open bracket."""
    while signs and signs[-1] != "(" and BINDS[signs[-1]][0] >= least:
        _, operation = BINDS[signs.pop()]
        right = values.pop()
        values.append(operation(values.pop(), right))
