"""JSON from outside, read without trust: a size limit, UTF-8, no name twice, no NaN, bounded nesting and numbers."""

import json
from pathlib import Path
from typing import Any

from deepseek_v3.weights.errors import CheckpointError, clip

MAX_DIGITS = 20


def read_json(path: Path, max_bytes: int, error_type: type[CheckpointError]) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: of the given subclass, naming the file and the first thing wrong.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        raise error_type(f"cannot be read: {error.strerror or error}", file=path) from error
    if len(raw) > max_bytes:
        raise error_type(f"is larger than {max_bytes:,} bytes", file=path)
    return parse_json(raw, path, error_type)


def parse_json(raw: bytes, path: Path, error_type: type[CheckpointError]) -> dict[str, Any]:
    """Parse the bytes of a JSON object; `path` is only for the message."""
    crumbs = raw.count(b"[") + raw.count(b"{") + raw.count(b",")
    if crumbs > 1000 and crumbs * 8 > len(raw):  # mostly brackets and commas: no configuration, no index
        raise error_type(f"is split into {crumbs:,} pieces in {len(raw):,} bytes", file=path)

    def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twin = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise error_type("the name occurs twice", file=path, tensor=twin)
        return found

    def refuse_constant(text: str) -> Any:
        raise error_type(f"{text} is not JSON", file=path)

    def read_integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise error_type(f"a number of {len(text):,} digits", file=path)
        return int(text)

    try:
        content = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=refuse_twins,
            parse_constant=refuse_constant,
            parse_int=read_integer,
        )
    except CheckpointError:
        raise
    except RecursionError:
        raise error_type("is nested too deeply", file=path) from None
    except UnicodeDecodeError as error:
        raise error_type(f"is not UTF-8 (byte {error.start})", file=path) from None
    except ValueError as error:
        raise error_type(f"is not JSON: {clip(str(error))}", file=path) from None
    if not isinstance(content, dict):
        raise error_type(f"is a JSON {type(content).__name__}, not an object", file=path)
    return content
