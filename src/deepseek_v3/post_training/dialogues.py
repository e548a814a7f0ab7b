"""Dialogues from a .jsonl file, as tokens that the checkpoint's template writes, with what is to be learned of them.

    {"messages": [{"role": "user", "content": "2 0 1"}, {"role": "assistant", "content": "0 1 2"}]}
    {"prompt": "2 0 1", "completion": "0 1 2"}

An answer counts from behind its marker to the end token that the template writes after it: a model that never learns
its end never stops. What is no dialogue is refused with file and line.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deepseek_v3.data.chat import ChatTemplate, encode_rendering
from deepseek_v3.data.documents import DataError
from deepseek_v3.data.tokenizer import Tokenizer

Messages = list[dict[str, Any]]


class Dialogue(NamedTuple):
    """A dialogue as tokens, and of each whether it is to be learned."""

    tokens: list[int]
    answers: list[bool]


def read_dialogues(path: str | Path) -> Iterator[tuple[str, Messages]]:
    """Yield the dialogues of a file, each with its place, FILE:LINE.

    Raises:
        DataError: a line that is none, with file and line; or a file without any.
    """
    found = False
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                found = True
                yield f"{path}:{number}", read_line(line, f"{path}:{number}")
    if not found:
        raise DataError(
            f"{path} holds no dialogue; a line is {{'messages': [...]}} or {{'prompt': ..., 'completion': ...}}"
        )


def read_line(line: bytes, place: str) -> Messages:
    """Return the messages of a line.

    Raises:
        DataError: it is no JSON, or no dialogue.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a line of JSON ({str(error)[:80]})") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: a dialogue is an object with messages, or prompt and completion, not {row!r:.40}")
    if "messages" in row:
        if not isinstance(row["messages"], list):
            raise DataError(f"{place}: messages must be a list, not {type(row['messages']).__name__}")
        return row["messages"]
    for name in ("prompt", "completion"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{place}: {name} must be a text; a line has messages, or prompt and completion")
    return make_messages(row["prompt"], row["completion"])


def make_messages(prompt: str, answer: str) -> Messages:
    """Return a question and its answer as messages."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def encode_dialogue(template: ChatTemplate, tokenizer: Tokenizer, messages: Messages, place: str) -> Dialogue:
    """Write a dialogue by the template.

    Raises:
        DataError: messages that the template cannot take, or without an answer; with file and line.
    """
    try:
        dialogue = Dialogue(*encode_rendering(tokenizer, template.render_dialogue(messages)))
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if not any(dialogue.answers):
        raise DataError(f"{place}: no answer of an assistant, so there is nothing to learn")
    return dialogue


def encode_dialogues(
    template: ChatTemplate, tokenizer: Tokenizer, rows: Iterator[tuple[str, Messages]], most_tokens: int
) -> list[Dialogue]:
    """Write all dialogues.

    Raises:
        DataError: as above, or one that is longer than a row.
    """
    found = []
    for place, messages in rows:
        dialogue = encode_dialogue(template, tokenizer, messages, place)
        if len(dialogue.tokens) > most_tokens:
            mend = f"raise --seq-len to {len(dialogue.tokens) - 1} or drop it"
            raise DataError(f"{place}: {len(dialogue.tokens)} tokens, and a row has {most_tokens}; {mend}")
        found.append(dialogue)
    return found


def hold_out(dialogues: Sequence[Dialogue], fraction: float) -> tuple[list[Dialogue], list[Dialogue]]:
    """Split by the hash of the tokens: a dialogue stands on one side for good, and so do its copies."""
    sides: tuple[list[Dialogue], list[Dialogue]] = [], []
    for dialogue in dialogues:
        digest = hashlib.sha256(json.dumps(dialogue.tokens).encode()).digest()
        sides[int.from_bytes(digest[:6], "big") < fraction * 2**48].append(dialogue)
    return sides if sides[0] else (sides[1], sides[0])


def encode_prompt(template: ChatTemplate, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Write a question so that the answer comes next."""
    return encode_rendering(tokenizer, template.render_prompt([{"role": "user", "content": prompt}]))[0]
