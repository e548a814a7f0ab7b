"""Dialogues as the text that a model was taught: by the checkpoint's own template, or DeepSeek's form for our runs.

    template = ChatTemplate.find(tokenizer)
    tokens, _ = encode_rendering(tokenizer, template.render_prompt([{"role": "user", "content": "Hello"}]))
    tokens, learned = encode_rendering(tokenizer, template.render_dialogue(messages))        learned: in an answer

What somebody writes never becomes a control token: wherever a message holds the first character of an added token, a
character of Unicode's private use stands in for it while the template runs, one for one, and is turned back in what
comes out. So a template may cut, strip and join messages as it likes, and only its own marks are read as marks.
`<think>` in an answer is the exception: that is how answers are written.

Source: the chat format of the released checkpoint: begin, system, then <｜User｜> and <｜Assistant｜>, no line ends.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from deepseek_v3.data.template_sandbox import ChatError, compile_template
from deepseek_v3.data.tokenizer import ASSISTANT, THINK, THINK_END, USER, Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
STAND_INS = range(0xE000, 0xF900)  # Unicode's private use
Message = Mapping[str, Any]

BUILT_IN = (
    "{{ bos_token }}"
    "{% for message in messages if message.role in ('system', 'developer') %}"
    "{{ '' if loop.first else '\n\n' }}{{ message.content }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' or message.tool_calls %}{{ raise_exception('it has no form for tools') }}"
    f"{{% elif message.role == 'user' %}}{{{{ '{USER}' + message.content }}}}"
    f"{{% elif message.role == 'assistant' %}}{{{{ '{ASSISTANT}' + message.content + eos_token }}}}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


@dataclass(frozen=True)
class Rendering:
    """A dialogue as text.

    Attributes:
        special: spans of characters that are one control token each, all of them the template's own.
        answers: spans of the assistant's answers, with the end token that the template writes behind them.
    """

    text: str
    special: Sequence[tuple[int, int]]
    answers: Sequence[tuple[int, int]] = ()


class ChatTemplate:
    """A template and the tokens that it may write.

    Attributes:
        source: the template's text; who asks whether it knows tools looks there.
        built_in: whether it is ours, since the checkpoint brought none.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, *, built_in: bool = False) -> None:
        self.source, self.built_in = source, built_in
        self.run: Callable[..., str] = compile_template(source)
        # one that begins with a letter, a digit or a space stays text, here and in messages
        names = [name for name in tokenizer.added_tokens if name and not (name[0].isalnum() or name[0].isspace())]
        self.marks = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
        self.first = {name[0] for name in names}
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        self.tokens = {name: tokenizer.token_bytes(token).decode("utf-8", "replace") for name, token in ends.items()}

    @classmethod
    def find(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """Return the template that came with a tokenizer, else DeepSeek's form.

        Raises:
            ChatError: a template that does not work, or none and a tokenizer without the marks of DeepSeek's form.
        """
        source = carried_template(tokenizer)
        if source is not None:
            return cls(source, tokenizer)
        if missing := [name for name in (USER, ASSISTANT) if tokenizer.token_id(name) is None]:
            raise ChatError(f"there is no chat template, and the tokenizer has no {' and no '.join(missing)} for ours")
        return cls(BUILT_IN, tokenizer, built_in=True)

    @property
    def knows_tools(self) -> bool:
        """Whether it writes tools into the prompt."""
        return not self.built_in and re.search(r"\btools\b", self.source) is not None

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, **more: Any) -> Rendering:
        """Return what the model reads before it answers.

        Args:
            more: further names that this template knows.
        Raises:
            ChatError: messages that cannot be used, and which; tools that the template has no place for.
        """
        veil = self.veil(messages, tools)
        return veil.lift(self.write(veil, len(messages), answer=True, **more), self.marks)

    def render_dialogue(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Rendering:
        """Return a whole dialogue, with the spans of its answers.

            answer i = what the dialogue up to it has more than the prompt for it

        Raises:
            ChatError: as above; or a template that writes an earlier answer in another way once there is a later one.
        """
        veil = self.veil(messages, tools)
        whole, answers = self.write(veil, len(messages)), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = self.write(veil, i, answer=True), self.write(veil, i + 1)
            if not (through.startswith(before) and whole.startswith(through)):
                raise ChatError(f"message {i}: the template writes this answer in several ways; no span holds it")
            answers.append((len(before), len(through)))
        return veil.lift(whole, self.marks, answers)

    def write(self, veil: "Veil", count: int, *, answer: bool = False, **more: Any) -> str:
        """Run the template over the first messages."""
        values = {**self.tokens, "tools": veil.tools, **more}
        return self.run(messages=veil.messages[:count], add_generation_prompt=answer, **values)

    def veil(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> "Veil":
        """Check a dialogue and hide what could be read as a mark."""
        check_messages(messages)
        if tools and not self.knows_tools:
            raise ChatError("this model's chat template has no place for tools")
        return Veil(messages, tools, self.first)


class Veil:
    """Messages and tools with stand-ins for characters that begin a mark, and the way back."""

    def __init__(self, messages: Sequence[Message], tools: Sequence[Any] | None, first: set[str]) -> None:
        used = set("".join(_texts([list(messages), list(tools or [])])))
        spare = (chr(code) for code in STAND_INS if chr(code) not in used)
        self.stands_for = {ord(stand): sign for sign, stand in zip(sorted(first), spare)}
        if len(self.stands_for) < len(first):
            raise ChatError("the messages use up the characters of private use")
        hide = {ord(sign): chr(stand) for stand, sign in self.stands_for.items()}
        self.messages = [_change(dict(message), hide, keep=message["role"] == "assistant") for message in messages]
        self.tools = _change(list(tools), hide, keep=False) if tools else None

    def lift(self, text: str, marks: re.Pattern[str], answers: Sequence[tuple[int, int]] = ()) -> Rendering:
        """Find the template's marks, then put the real characters back: one for one, so spans stay."""
        special = [found.span() for found in marks.finditer(text)]
        return Rendering(text.translate(self.stands_for), special, answers)


def _texts(value: Any) -> list[str]:
    """All texts in a value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def _change(value: Any, hide: Mapping[int, str], *, keep: bool) -> Any:
    """Return a value with stand-ins in all its texts; `keep` leaves the marks of thinking as they are."""
    if isinstance(value, str):
        parts = re.split(f"({THINK}|{THINK_END})", value) if keep else [value]
        return "".join(part if i % 2 else part.translate(hide) for i, part in enumerate(parts))
    if isinstance(value, Mapping):
        return {_change(k, hide, keep=False): _change(v, hide, keep=keep and k == "content") for k, v in value.items()}
    return [_change(part, hide, keep=keep) for part in value] if isinstance(value, list | tuple) else value


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is no dialogue.

    Raises:
        ChatError: which message, and what it lacks.
    """
    if not messages:
        raise ChatError("there are no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
            raise ChatError(f"message {i}: must be an object with role and content, not {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ChatError(f"message {i}: role must be one of {', '.join(ROLES)}, not {str(role)[:40]!r}")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            found = "null" if content is None else type(content).__name__
            raise ChatError(f"message {i}: content must be text, not {found}")


def carried_template(tokenizer: Tokenizer) -> str | None:
    """Return the template that lay beside a tokenizer, of several the default one.

    Raises:
        ChatError: a file that holds none.
    """
    if (raw := tokenizer.side.carried.get("chat_template.jinja")) is not None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ChatError("chat_template.jinja is not UTF-8 text") from None
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = tokenizer.side.content.get(file, {}).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default", next(iter(named.values()), None))
        if isinstance(found, str):
            return found
    return None


def encode_rendering(tokenizer: Tokenizer, rendering: Rendering) -> tuple[list[int], list[bool]]:
    """Return the tokens of a rendering, and of each whether it lies in an answer.

    Text between marks and borders of answers is encoded piece by piece, with every control token in it as text.
    """
    ids = tokenizer.added_tokens
    special = dict(rendering.special)
    cuts = sorted({0, len(rendering.text), *(at for span in (*rendering.special, *rendering.answers) for at in span)})
    starts = [start for start, _ in rendering.answers]
    tokens: list[int] = []
    learned: list[bool] = []
    for start, end in pairwise(cuts):
        piece = rendering.text[start:end]
        tokens += [ids[piece]] if special.get(start) == end else tokenizer.encode(piece)
        answer = bisect_right(starts, start) - 1
        inside = answer >= 0 and start < rendering.answers[answer][1]
        learned += [inside] * (len(tokens) - len(learned))
    return tokens, learned
