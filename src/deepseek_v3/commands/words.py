"""What a command line says before it is parsed: which flags were given, and several words of one flag."""

import dataclasses
from typing import Any


def flag_of(word: str) -> str | None:
    """Return the field that a word such as --batch-size=4 names, or None."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") and len(word) > 2 else None


def given_flags(kind: Any, words: list[str]) -> frozenset[str]:
    """Return the fields of an options dataclass that the words name."""
    names = {field.name for field in dataclasses.fields(kind)}
    flags = {flag for word in words if (flag := flag_of(word))}
    return frozenset(names & (flags | {flag.removeprefix("no_") for flag in flags}))


def bind_values(kind: Any, words: list[str]) -> list[str]:
    """Write `--prompt -x` as `--prompt=-x`: what follows a flag that takes one value is its value, unless a flag."""
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    single = {name for name, type_ in fields.items() if type_ != "bool" and not type_.startswith("tuple[")}
    bound: list[str] = []
    for word in words:
        waiting = bool(bound) and "=" not in bound[-1] and flag_of(bound[-1]) in single
        if waiting and word.startswith("-") and flag_of(word) not in fields:
            bound[-1] += f"={word}"
        else:
            bound.append(word)
    return bound


def join_repeats(kind: Any, words: list[str]) -> list[str]:
    """Return the words with the values of a flag that takes several and was given several times behind one of it.

    `--set a=1 --set b=2` and `--set a=1 b=2` mean the same; a parser alone would keep the last.
    """
    several = {field.name for field in dataclasses.fields(kind) if str(field.type).startswith("tuple[")}
    flags = [flag for word in words if (flag := flag_of(word)) in several]
    if len(flags) == len(set(flags)):
        return words
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    current = None
    for word in words:
        flag = flag_of(word)
        if flag in several:
            current = values.setdefault(str(flag), [])
            current += [word.partition("=")[2]] if "=" in word else []
        elif flag or current is None:
            current = None
            kept.append(word)
        else:
            current.append(word)
    return kept + [word for flag, found in values.items() for word in ("--" + flag.replace("_", "-"), *found)]
