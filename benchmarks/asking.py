"""The command line of a benchmark: what it says of itself, and its values, if it takes any."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def read_values(doc: str | None, name: str = "", kind: Callable[[str], Any] = str) -> list[Any]:
    """Return the values on the command line; `--help` prints the text of the module, anything wrong ends with a line.

    Args:
        doc: what `--help` says.
        name: what the values are called; without, the benchmark takes none.
        kind: what makes a value of a word, or raises ValueError or ArgumentTypeError.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if name:
        parser.add_argument("values", nargs="*", type=kind, metavar=name)
    return list(getattr(parser.parse_args(), "values", []))


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a kind of value that is one of these names."""

    def check(word: str) -> str:
        if word not in names:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(names)}")
        return word

    return check
