"""The small files beside a tokenizer.json: carried byte for byte, and read for the tokens that begin, end and pad.

    side = read_side_files("DIR")
    side.names("eos")     what tokenizer_config.json and special_tokens_map.json call it
    side.ids("eos")       what config.json and generation_config.json number it: one, several or none

Nothing in them is executed: a chat template is text here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CARRIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
)
NAMING, NUMBERING = ("tokenizer_config.json", "special_tokens_map.json"), ("config.json", "generation_config.json")
MAX_BYTES = 2**24


class TokenizerError(ValueError):
    """A tokenizer that cannot be made or read; the message names the mend."""


@dataclass(frozen=True)
class SideFiles:
    """What stood beside a tokenizer.json.

    Attributes:
        carried: the bytes of each file that belongs to the tokenizer, by name.
        content: the JSON objects among them, and that of config.json.
    """

    carried: Mapping[str, bytes] = field(default_factory=dict)
    content: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def names(self, role: str) -> Iterator[str]:
        """Yield what the tokenizer's files call the token of a role: bos, eos or pad."""
        for file in NAMING:
            found = self.content.get(file, {}).get(f"{role}_token")
            found = found.get("content") if isinstance(found, dict) else found
            if isinstance(found, str):
                yield found

    def ids(self, role: str) -> Iterator[int]:
        """Yield the numbers of the tokens of a role: of the model's configuration, then of its generation settings."""
        for file in NUMBERING:
            values = self.content.get(file, {})
            text = values.get("text_config")
            values = {**values, **text} if isinstance(text, dict) else values
            found = values.get(f"{role}_token_id")
            for token in found if isinstance(found, list) else [found]:
                if type(token) is int and token >= 0:
                    yield token


def read_side_files(folder: Path) -> SideFiles:
    """Read what is there of them.

    Raises:
        TokenizerError: one that is too large, or no JSON object where it must be one.
    """
    carried = {name: _read(folder / name) for name in CARRIED if (folder / name).is_file()}
    found = dict(carried)
    if (folder / "config.json").is_file():
        found["config.json"] = _read(folder / "config.json")
    return SideFiles(carried, {name: _parse(folder / name, found[name]) for name in found if name.endswith(".json")})


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise TokenizerError(f"{path} is larger than {MAX_BYTES:,} bytes; move it away")
    return path.read_bytes()


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON ({str(error)[:80]}); mend it or move it away") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a JSON {type(content).__name__}, not an object; mend it or move it away")
    return content
