"""From pieces of the engine to OpenAI's objects, whole or as a stream.

    answer = TextAnswer(served, body, prompts)     or ChatAnswer(served, body, [prompt])
    chunks = answer.opening(); for what a step brings: answer.grow(number, event); at last answer.whole() or .usage()

Both ways go through `grow`, so a stream put together is the whole answer.
"""

import logging
import time
from typing import Any
from uuid import uuid4

from deepseek_v3.engine.engine import Event
from deepseek_v3.engine.grammar import GRAMMAR_FAILED
from deepseek_v3.engine.request import GenerationStatistics
from deepseek_v3.engine.sampler import Score
from deepseek_v3.serving.problems import ServerFault, bad_request
from deepseek_v3.serving.prompts import Prompt, Served
from deepseek_v3.serving.protocol import ChatRequest, CompletionRequest
from deepseek_v3.serving.tools import CallReader

LEAST = -9999.0  # stands for minus infinity, which JSON does not have
NOWHERE = "The form that response_format asks for leads nowhere, or is too large to be followed."
PLAIN, STOOD, FELL = 0, 1, 2  # how a token came, for who asks for drafts
log = logging.getLogger("deepseek_v3.serving")
Parts = list[dict[str, Any]]


class Choice:
    """One text on its way."""

    def __init__(self, index: int, prompt: Prompt, served: Served) -> None:
        self.index, self.prompt, self.text = index, prompt, ""
        self.finish: str | None = None
        self.seen = GenerationStatistics()
        self.scores: Parts = []
        self.offsets, self.offset = served.tokenizer.stream(), 0
        self.pieces, self.reader = served.tokenizer.stream(), CallReader()


class AnswerBase:
    """What completions and chats have in common."""

    prefix, whole_name, chunk_name = "", "", ""

    def __init__(self, served: Served, body: Any, prompts: list[Prompt]) -> None:
        self.served, self.body, self.copies = served, body, body.n or 1
        texts = [prompt for prompt in prompts for _ in range(self.copies)]
        self.choices = [Choice(i, prompt, served) for i, prompt in enumerate(texts)]
        self.scored = body.logprobs is not None and body.logprobs is not False
        self.head = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": served.name}

    def chunk(self, parts: Parts, **more: Any) -> dict[str, Any]:
        """A piece of a stream; each one says that usage comes later, if it will."""
        usage = {"usage": None} if self.body.shows("usage") else {}
        return {**self.head, "object": self.chunk_name, "choices": parts, **usage, **more}

    def opening(self) -> Parts:
        """What a stream begins with."""
        return []

    def grow(self, number: int, event: Event) -> Parts:
        """Take what a step brought to a choice; return the parts of a chunk that it gives.

        Raises:
            Problem: the text ended in an error; what it was is logged.
        """
        choice = self.choices[number]
        if event.finish == "error":
            log.warning("a text ended in an error: %s", event.error)
            raise bad_request(NOWHERE, "response_format") if GRAMMAR_FAILED in event.error else ServerFault()
        choice.finish = event.finish
        shown, scores = self.read(choice, event)
        choice.seen, choice.text = event.sequence.statistics, choice.text + shown
        choice.scores += scores
        if not (shown or scores or choice.finish or event.tokens):
            return []
        drafts = {"drafts": self.colour(choice, event)} if self.body.shows("drafts") else {}
        return [self.shape(choice, self.words(choice, shown, whole=False), scores) | drafts]

    def read(self, choice: Choice, event: Event) -> tuple[str, Parts]:
        """The text that an event brings, and the scores of its tokens."""
        raise NotImplementedError

    def words(self, choice: Choice, text: str, *, whole: bool) -> dict[str, Any]:
        """A text: all of a choice, or what a part of a stream adds."""
        raise NotImplementedError

    def table(self, scores: Parts) -> dict[str, Any]:
        """Scores in OpenAI's order."""
        raise NotImplementedError

    def shape(self, choice: Choice, words: dict[str, Any], scores: Parts) -> dict[str, Any]:
        """A choice, or a part of one."""
        logprobs = self.table(scores) if self.scored else None
        return {"index": choice.index, **words, "logprobs": logprobs, "finish_reason": choice.finish}

    def colour(self, choice: Choice, event: Event) -> list[tuple[str, int]]:
        """Text by token, and how each one came; the drafts that fell at the end."""
        came = [(choice.pieces.push(t), STOOD if i < event.stood else PLAIN) for i, t in enumerate(event.tokens)]
        fell = event.drafts[event.stood :]
        return came + [(self.served.tokenizer.decode([token], skip_special=False), FELL) for token in fell]

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices; a prompt that several continue counts once."""
        first = self.choices[:: self.copies]
        prompt = sum(len(choice.prompt.tokens) for choice in first)
        written = sum(choice.seen.new_tokens for choice in self.choices)
        shared = {"cached_tokens": sum(choice.seen.shared_tokens for choice in first)}
        counts = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        return {**counts, "prompt_tokens_details": shared}

    def whole(self) -> dict[str, Any]:
        """All of it, as one object."""
        choices = [self.shape(c, self.words(c, c.text, whole=True), c.scores) for c in self.choices]
        return {**self.head, "object": self.whole_name, "choices": choices, "usage": self.usage()}

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

    def read(self, choice: Choice, event: Event) -> tuple[str, Parts]:
        """Text, behind the prompt if it is to be echoed."""
        shown, rows = event.shown, [(score.token, score) for score in event.scores]
        if self.body.echo and not choice.seen.prompt_tokens:  # its first event
            shown, before = choice.prompt.text + shown, [*zip(choice.prompt.tokens, event.sequence.prompt_scores)]
            rows = before[choice.prompt.added :] + rows
        return shown, [self.score(choice, *row) for row in rows] if self.scored else []

    def words(self, choice: Choice, text: str, *, whole: bool) -> dict[str, Any]:
        """The same for both."""
        return {"text": text}

    def table(self, scores: Parts) -> dict[str, Any]:
        """By columns; the likeliest ones only where some were asked for."""
        columns = {name: [row[name] for row in scores] for name in ("tokens", "token_logprobs", "text_offset")}
        return {**columns, "top_logprobs": [row["top"] for row in scores] if self.body.logprobs else None}

    def score(self, choice: Choice, token: int, score: Score | None) -> dict[str, Any]:
        """The log-probability of a token, where it begins in the text, and the likeliest ones."""
        start, choice.offset = choice.offset, choice.offset + len(choice.offsets.push(token))
        row = {"tokens": self.name(token), "token_logprobs": None, "top": None, "text_offset": start}
        if score is None:  # nothing stands before it
            return row
        top = {self.name(t): max(p, LEAST) for t, p in (*score.top, (score.token, score.logprob))}
        return row | {"token_logprobs": max(score.logprob, LEAST), "top": top}


class ChatAnswer(AnswerBase):
    """The answer to /v1/chat/completions."""

    prefix, whole_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: ChatRequest

    def opening(self) -> Parts:
        """The role, once a choice."""
        delta = {"delta": {"role": "assistant", "content": "", "refusal": None}}
        return [self.shape(choice, delta, []) | {"logprobs": None} for choice in self.choices]

    def read(self, choice: Choice, event: Event) -> tuple[str, Parts]:
        """Content; at the end the calls that stand in it are known."""
        shown, reader = event.shown, choice.reader
        if self.body.offers_tools:
            shown = reader.push(shown) + (reader.finish() if choice.finish else "")
            if self.body.parallel_tool_calls is False:
                del reader.calls[1:]
        if reader.calls and choice.finish == "stop":
            choice.finish = "tool_calls"
        return shown, [self.score(score) for score in event.scores]

    def words(self, choice: Choice, text: str, *, whole: bool) -> dict[str, Any]:
        """Content and calls."""
        calls = choice.reader.calls
        if whole:
            message = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
            return {"message": message | ({"tool_calls": calls} if calls else {})}
        numbered = {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else {}
        return {"delta": ({"content": text} if text else {}) | numbered}

    def table(self, scores: Parts) -> dict[str, Any]:
        """By tokens."""
        return {"content": scores, "refusal": None}

    def score(self, score: Score) -> dict[str, Any]:
        """The log-probability of a token, and the likeliest ones."""
        top = [self.row(token, logprob) for token, logprob in score.top]
        return {**self.row(score.token, score.logprob), "top_logprobs": top}

    def row(self, token: int, logprob: float) -> dict[str, Any]:
        """A token, its bytes, its log-probability."""
        raw = list(self.served.tokenizer.token_bytes(token))
        return {"token": self.name(token), "logprob": max(logprob, LEAST), "bytes": raw}
