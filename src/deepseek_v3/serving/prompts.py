"""From what a client said to what the engine is asked: tokens, rules, limits.

served = Served("demo", tokenizer, engine facts ...)
prompts = await served.read_completion(body)
request = await served.make_request(body, prompt, ...)
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deepseek_v3.data.chat import ChatError, ChatTemplate, encode_rendering
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.grammar import Constraint, Grammars
from deepseek_v3.engine.request import Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.steering import Steering
from deepseek_v3.serving.problems import bad_request, no_model, too_long
from deepseek_v3.serving.protocol import ChatRequest, CompletionRequest, ResponseFormat, Sampling
from deepseek_v3.serving.tools import CALLS_BEGIN

T = TypeVar("T")
SHORT = 2**13  # characters that are tokenized on the loop; longer texts go to a thread
DEFAULT_TOKENS = 16  # of a completion that names no limit, as OpenAI's
GRAMMARS_KEPT = 64
FORMS = {"json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        text: as the client wrote it; `echo` shows it.
        added: tokens in front that the client did not write.
    """

    tokens: list[int]
    text: str
    added: int = 0


@dataclass
class Served:
    """The model behind the server.

    Attributes:
        context: tokens of prompt and answer together, at most.
        drafts: that are made a step where a request does not say.
        grammars: None where llguidance is not installed.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    context: int
    drafts: int
    grammars: Grammars | None
    created: int = field(default_factory=lambda: int(time.time()))
    kept: OrderedDict[str, Constraint] = field(default_factory=OrderedDict)

    def check_model(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            Problem: 404.
        """
        if name != self.name:
            raise no_model(name)

    async def read_completion(self, body: CompletionRequest) -> list[Prompt]:
        """Return one prompt or several."""
        prompts: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if isinstance(prompts[0], int):
            prompts = [prompts]
        return [await self.read_prompt(prompt) for prompt in prompts]

    async def read_prompt(self, prompt: str | list[int]) -> Prompt:
        """Return a prompt; behind the begin token if it is a text."""
        if isinstance(prompt, list):
            return Prompt(prompt, self.tokenizer.decode(prompt, skip_special=False))
        tokens = await aside(len(prompt), lambda: self.tokenizer.encode(prompt))
        return Prompt([self.tokenizer.bos_id, *tokens], prompt, added=1)

    async def read_chat(self, body: ChatRequest) -> Prompt:
        """Return a dialogue in the form that the model was taught.

        Raises:
            Problem: no template, one that refuses, or tools without a form for them.
        """
        template = self.template
        if template is None:
            raise bad_request("This model has no chat template; use /v1/completions.", "messages")
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] if body.offers_tools else []
        if tools and not self.calls_tools:
            raise bad_request("This model's chat template and tokens have no form for tools.", "tools")
        messages = [message.plain() for message in body.messages]
        size = sum(len(str(message)) for message in (*messages, *tools))
        try:
            rendering = await aside(size, lambda: template.render_prompt(messages, tools))
            tokens, _ = await aside(size, lambda: encode_rendering(self.tokenizer, rendering))
        except ChatError as error:
            raise bad_request(str(error), "messages") from None
        return Prompt(tokens, rendering.text)

    @property
    def calls_tools(self) -> bool:
        """Whether template and tokens have DeepSeek's form of calls, as text that can be read."""
        token = self.tokenizer.token_id(CALLS_BEGIN)
        known = self.template is not None and self.template.knows_tools and CALLS_BEGIN in self.template.source
        return known and token is not None and not self.tokenizer.is_special(token)

    def most_tokens(self, prompt: Prompt, asked: int | None, param: str) -> int:
        """Return how many tokens to write: what is asked for, or what there is room for.

        Raises:
            Problem: more than the context has room for.
        """
        room = self.context - len(prompt.tokens)
        if room < (1 if asked is None else asked):
            raise too_long(self.context, len(prompt.tokens), 1 if asked is None else asked, param)
        return room if asked is None else asked

    async def make_request(
        self,
        body: Sampling,
        prompt: Prompt,
        most: int,
        *,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> Request:
        """Return what the engine is asked.

        Raises:
            Problem: values that cannot go together.
        """
        constraint = await self.find_constraint(body.response_format)
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        try:
            steering = Steering(
                or_else(body.repetition_penalty, 1.0),
                or_else(body.presence_penalty, 0.0),
                or_else(body.frequency_penalty, 0.0),
                biases,
            )
            return Request(
                prompt.tokens,
                SamplingRule(
                    or_else(body.temperature, 1.0),
                    max(0, or_else(body.top_k, 0)),
                    or_else(body.top_p, 1.0),
                    or_else(body.min_p, 0.0),
                ),
                most,
                body.seed,
                min(or_else(body.drafts, self.drafts), max(0, most - 1)),
                () if body.ignore_eos else self.tokenizer.stop_ids,
                adaptive=body.drafts is None,
                stop=body.stops,
                steering=steering,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                constraint=constraint,
            )
        except ValueError as error:
            raise bad_request(str(error)) from None

    async def find_constraint(self, wish: ResponseFormat | None) -> Constraint | None:
        """Return the compiled form of an answer, or None where it is free.

        Raises:
            Problem: a form that cannot be served.
        """
        if wish is None or wish.type == "text":
            return None
        if self.grammars is None:
            raise bad_request("Structured output needs llguidance, which is not installed here.", "response_format")
        source: Any = getattr(wish, FORMS[wish.type]) if wish.type in FORMS else ""
        if source is None:
            raise bad_request(f"response_format of type {wish.type} needs {wish.type}.", "response_format")
        if wish.type == "json_schema":
            source = json.dumps(source.schema_ if source.schema_ is not None else {})
        key, grammars = f"{wish.type} {source}", self.grammars
        if key not in self.kept:
            try:
                rest = (source,) if source else ()
                self.kept[key] = await asyncio.to_thread(grammars.compile, wish.type, *rest)
            except ValueError as error:
                raise bad_request(str(error)[:500], "response_format") from None
        self.kept.move_to_end(key)
        while len(self.kept) > GRAMMARS_KEPT:
            self.kept.popitem(last=False)
        return self.kept[key]


def or_else(value: T | None, usual: T) -> T:
    """A value, or the usual one where none was given."""
    return usual if value is None else value


async def aside(size: int, work: Callable[[], T]) -> T:
    """Do a small work here and a large one in a thread, where it keeps nobody waiting."""
    return work() if size < SHORT else await asyncio.to_thread(work)
