"""What a value in a config.json may be, and how one that cannot work is told."""

import difflib
from typing import Any

FP32_SMALLEST, FP32_LARGEST = 2.0**-126, 2.0**127  # of normal numbers: what is computed with them stays finite


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the key, the value and the mend."""


def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs; readers differ in which of two equal keys they take.

    Raises:
        ConfigError: a key occurs twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key {key!r} occurs twice; keep one")
        found[key] = value
    return found


def refuse_constant(word: str) -> Any:
    """Refuse what JSON has no word for.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{word} is not JSON; give a finite number, or leave the key out")


def clip_number(value: float) -> str:
    """Write a number, a very long one by its first digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"about 2^{value.bit_length() - 1}"
    return str(value)


def suggest(word: str, known: list[str]) -> str:
    """Return ' (did you mean X?)' when a known word is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def spell(value: Any) -> str:
    """Write any value for a message."""
    return clip_number(value) if is_number(value) else repr(value)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
