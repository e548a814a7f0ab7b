"""From pieces of the engine to OpenAI's objects, whole or as a stream.

    answer = TextAnswer(served, body, prompts)     or ChatAnswer(served, body, [prompt])
    chunks = answer.opening(); for every piece: answer.grow(piece); at the end answer.whole() or answer.usage()

Both ways go through `grow`, so a stream put together is the whole answer.
"""

import logging
import time
from typing import Any
from uuid import uuid4

from deepseek_v3.engine.request import GenerationStatistics
from deepseek_v3.engine.scores import Score
from deepseek_v3.serving.problems import ServerFault
from deepseek_v3.serving.prompts import Prompt, Served
from deepseek_v3.serving.protocol import ChatRequest, CompletionRequest
from deepseek_v3.serving.tools import CallReader
from deepseek_v3.serving.worker import Piece

LEAST = -9999.0  # stands for minus infinity, which JSON does not have
PLAIN, STOOD, FELL = 0, 1, 2  # how a token came, for who asks for drafts
log = logging.getLogger("deepseek_v3.serving")
Parts = list[dict[str, Any]]


class Choice:
    """One text on its way."""

    def __init__(self, index: int, prompt: Prompt, served: Served) -> None:
        self.index, self.prompt = index, prompt
        self.text = ""
        self.finish: str | None = None
        self.begun = False
        self.seen = GenerationStatistics()
        self.scores: list[dict[str, Any]] = []
        self.offsets, self.offset = served.tokenizer.stream(), 0
        self.pieces = served.tokenizer.stream()
        self.reader = CallReader()


class AnswerBase:
    """What completions and chats have in common."""

    prefix, whole_name, chunk_name = "", "", ""

    def __init__(self, served: Served, body: Any, prompts: list[Prompt]) -> None:
        self.served, self.body = served, body
        self.copies = body.n or 1
        texts = [prompt for prompt in prompts for _ in range(self.copies)]
        self.choices = [Choice(i, prompt, served) for i, prompt in enumerate(texts)]
        self.drafts = body.shows("drafts")
        self.head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": served.name}

    def chunk(self, parts: Parts, **more: Any) -> dict[str, Any]:
        """A piece of a stream; each one says that usage comes later, if it will."""
        usage = {"usage": None} if self.body.shows("usage") else {}
        return {**self.head, "object": self.chunk_name, "choices": parts, **usage, **more}

    def opening(self) -> Parts:
        """What a stream begins with."""
        return []

    def grow(self, piece: Piece) -> Parts:
        """Take a piece; return the parts of a chunk that it gives.

        Raises:
            ServerFault: the text ended in an error; what it was is logged.
        """
        choice, event = self.choices[piece.choice], piece.event
        if event.finish == "error":
            log.warning("a text ended in an error: %s", event.error)
            raise ServerFault()
        choice.finish, choice.seen = event.finish, event.sequence.statistics
        part = self.part(choice, piece, event.shown)
        choice.begun = True
        if part is not None and self.drafts:
            part["drafts"] = self.colour(choice, event)
        return [] if part is None else [part]

    def part(self, choice: Choice, piece: Piece, shown: str) -> dict[str, Any] | None:
        """What a piece adds, as a part of a chunk."""
        raise NotImplementedError

    def colour(self, choice: Choice, event: Any) -> list[tuple[str, int]]:
        """Text by token, and how each one came; the drafts that fell at the end."""
        came = [
            (choice.pieces.push(token), STOOD if i < event.stood else PLAIN) for i, token in enumerate(event.tokens)
        ]
        fell = event.drafts[event.stood :]
        return came + [(self.served.tokenizer.decode([token], skip_special=False), FELL) for token in fell]

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices; a prompt that several continue counts once."""
        first = self.choices[:: self.copies]
        prompt = sum(len(choice.prompt.tokens) for choice in first)
        shared = sum(choice.seen.shared_tokens for choice in first)
        written = sum(choice.seen.new_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": shared},
        }

    def whole(self) -> dict[str, Any]:
        """All of it, as one object."""
        choices = [self.describe(choice) for choice in self.choices]
        return {**self.head, "object": self.whole_name, "choices": choices, "usage": self.usage()}

    def describe(self, choice: Choice) -> dict[str, Any]:
        """A choice that is over."""
        raise NotImplementedError

    def name(self, token: int) -> str:
        """A token as text; one that is no whole character by its bytes."""
        raw = self.served.tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextAnswer(AnswerBase):
    """The answer to /v1/completions."""

    prefix, whole_name, chunk_name = "cmpl", "text_completion", "text_completion"
    body: CompletionRequest

    def part(self, choice: Choice, piece: Piece, shown: str) -> dict[str, Any] | None:
        """Text, behind the prompt if it is to be echoed."""
        rows: list[tuple[int, Score | None]] = [(score.token, score) for score in piece.event.scores or ()]
        if self.body.echo and not choice.begun:
            shown = choice.prompt.text + shown
            if self.body.logprobs is not None:
                before = list(zip(choice.prompt.tokens, piece.event.sequence.prompt_scores, strict=True))
                rows = before[choice.prompt.added :] + rows
        scores = None if self.body.logprobs is None else [self.score(choice, *row) for row in rows]
        choice.text += shown
        choice.scores += scores or []
        if not (shown or scores or choice.finish or piece.event.tokens):
            return None
        return self.shape(choice, shown, scores)

    def shape(self, choice: Choice, text: str, scores: list[dict[str, Any]] | None) -> dict[str, Any]:
        """A choice, or a part of one."""
        columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        table: dict[str, Any] | None = None
        if scores is not None:
            table = {name: [row[name] for row in scores] for name in columns}
            if not self.body.logprobs:  # the chosen ones alone are asked for
                table["top_logprobs"] = None
        return {"index": choice.index, "text": text, "logprobs": table, "finish_reason": choice.finish}

    def score(self, choice: Choice, token: int, score: Score | None) -> dict[str, Any]:
        """The log-probability of a token, where it begins in the text, and the likeliest ones."""
        top = None
        if score is not None and self.body.logprobs:
            top = {self.name(t): max(p, LEAST) for t, p in (*score.top, (score.token, score.logprob))}
        start, choice.offset = choice.offset, choice.offset + len(choice.offsets.push(token))
        logprob = None if score is None else max(score.logprob, LEAST)
        return {"tokens": self.name(token), "token_logprobs": logprob, "top_logprobs": top, "text_offset": start}

    def describe(self, choice: Choice) -> dict[str, Any]:
        """A text that is over."""
        return self.shape(choice, choice.text, None if self.body.logprobs is None else choice.scores)


class ChatAnswer(AnswerBase):
    """The answer to /v1/chat/completions."""

    prefix, whole_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: ChatRequest

    def opening(self) -> Parts:
        """The role, once a choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        parts = [{"index": choice.index, "delta": delta} for choice in self.choices]
        return [{**part, "logprobs": None, "finish_reason": None} for part in parts]

    def part(self, choice: Choice, piece: Piece, shown: str) -> dict[str, Any] | None:
        """Content, and at the end the calls that stand in it."""
        delta: dict[str, Any] = {}
        if self.body.offers_tools:
            shown = choice.reader.push(shown)
            if choice.finish:
                shown += choice.reader.finish()
            if self.body.parallel_tool_calls is False:
                del choice.reader.calls[1:]
        choice.text += shown
        if shown:
            delta["content"] = shown
        if choice.reader.calls:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(choice.reader.calls)]
            choice.finish = "tool_calls" if choice.finish == "stop" else choice.finish
        scores = [self.score(score) for score in piece.event.scores or ()] if self.body.logprobs else None
        choice.scores += scores or []
        if not (delta or scores or choice.finish or piece.event.tokens):
            return None
        logprobs = None if scores is None else {"content": scores, "refusal": None}
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish}

    def score(self, score: Score) -> dict[str, Any]:
        """The log-probability of a token, and the likeliest ones."""
        top = [self.row(token, logprob) for token, logprob in score.top]
        return {**self.row(score.token, score.logprob), "top_logprobs": top}

    def row(self, token: int, logprob: float) -> dict[str, Any]:
        """A token, its bytes, its log-probability."""
        raw = list(self.served.tokenizer.token_bytes(token))
        return {"token": self.name(token), "logprob": max(logprob, LEAST), "bytes": raw}

    def describe(self, choice: Choice) -> dict[str, Any]:
        """An answer that is over."""
        calls = choice.reader.calls
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if calls:
            message |= {"content": choice.text or None, "tool_calls": calls}
        logprobs = {"content": choice.scores, "refusal": None} if self.body.logprobs else None
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
