"""What a value in a config.json may be, and how one that cannot work is told."""

import dataclasses
import difflib
import json
from typing import Any

LARGEST_SIZE, MOST_LAYERS = 2**31 - 1, 10_000
FP8_BLOCK = 128  # rows and columns of a weight that share one scale
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


def read_json(text: str) -> Any:
    """Read JSON in which no key occurs twice and every number is finite.

    Raises:
        ValueError: it is not JSON; a ConfigError where it is, but no configuration.
    """
    return json.loads(text, object_pairs_hook=refuse_twins, parse_constant=refuse_constant)


def check_not_huge(c: Any) -> None:
    """Refuse sizes that no memory holds: what counts or builds such a model would run for hours, or overflow."""
    for f in dataclasses.fields(c):
        value, layers = getattr(c, f.name), "layers" in f.name
        limit = MOST_LAYERS if layers else LARGEST_SIZE
        if str(f.type).replace("<class '", "").startswith("int") and isinstance(value, int) and value > limit:
            raise ConfigError(f"{f.name}={clip_number(value)} must be at most {limit:,}")


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
