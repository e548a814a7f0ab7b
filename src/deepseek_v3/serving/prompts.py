"""From what a client said to what the engine is asked: tokens, rules, limits.

served = Served("demo", tokenizer, template, context, drafts, grammars)
prompts, requests = await served.plan_completion(body)         or plan_chat(body)
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from deepseek_v3.data.chat import ChatError, ChatTemplate, encode_rendering
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.grammar import Constraint, Grammars
from deepseek_v3.engine.request import Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.steering import Steering
from deepseek_v3.serving.problems import bad_request, no_model, too_long
from deepseek_v3.serving.protocol import ChatRequest, CompletionRequest, NamedSchema, ResponseFormat, Sampling
from deepseek_v3.serving.tools import CALLS_BEGIN

T = TypeVar("T")
SHORT = 2**13  # characters that are tokenized on the loop; longer texts go to a thread
DEFAULT_TOKENS = 16  # of a completion that names no limit, as OpenAI's
GRAMMARS_KEPT = 64


class Prompt(NamedTuple):
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

    def __post_init__(self) -> None:
        self.compile = lru_cache(GRAMMARS_KEPT)(self.grammars.compile) if self.grammars else None
        token, template = self.tokenizer.token_id(CALLS_BEGIN), self.template
        known = template is not None and template.knows_tools and CALLS_BEGIN in template.source
        self.calls_tools = known and token is not None and not self.tokenizer.is_special(token)  # DeepSeek's form

    def check_model(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            Problem: 404.
        """
        if name != self.name:
            raise no_model(name)

    async def plan_completion(self, body: CompletionRequest) -> tuple[list[Prompt], list[Request]]:
        """Return the prompts, and what the engine is asked of each.

        Raises:
            Problem: values that cannot go together, or more than the context has room for.
        """
        self.check_model(body.model)
        if body.best_of not in (None, body.n or 1):
            raise bad_request("best_of must equal n: every text that is written is returned.", "best_of")
        said: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        prompts = [await self.read_prompt(prompt) for prompt in ([said] if isinstance(said[0], int) else said)]
        most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        scores = {"logprobs": body.logprobs, "prompt_logprobs": (body.logprobs or 0) if body.echo or not most else None}
        return prompts, [await self.make_request(body, prompt, most, "prompt", scores) for prompt in prompts]

    async def read_prompt(self, prompt: str | list[int]) -> Prompt:
        """Return a prompt; behind the begin token if it is a text."""
        if isinstance(prompt, list):
            return Prompt(prompt, self.tokenizer.decode(prompt, skip_special=False))
        tokens = await aside(len(prompt), lambda: self.tokenizer.encode(prompt))
        return Prompt([self.tokenizer.bos_id, *tokens], prompt, added=1)

    async def plan_chat(self, body: ChatRequest) -> tuple[list[Prompt], list[Request]]:
        """Return a dialogue in the form that the model was taught, and what the engine is asked.

        Raises:
            Problem: as `plan_completion`; no template, one that refuses, or tools without a form for them.
        """
        self.check_model(body.model)
        if body.top_logprobs and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise bad_request("max_tokens and max_completion_tokens are the same; give one.", "max_tokens")
        if (template := self.template) is None:
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
        prompt, most = Prompt(tokens, rendering.text), body.max_completion_tokens or body.max_tokens
        scores = {"logprobs": (body.top_logprobs or 0) if body.logprobs else None}
        return [prompt], [await self.make_request(body, prompt, most, "messages", scores)]

    async def make_request(
        self, body: Sampling, prompt: Prompt, asked: int | None, param: str, scores: dict[str, Any]
    ) -> Request:
        """Return what the engine is asked: so many tokens, or what there is room for."""
        room, least = self.context - len(prompt.tokens), 1 if asked is None else asked
        if room < least:
            raise too_long(self.context, len(prompt.tokens), least, param)
        most = room if asked is None else asked
        rule = {"temperature": 1.0, **body.given("temperature", "top_p", "min_p")}
        penalties = body.given("repetition_penalty", "presence_penalty", "frequency_penalty")
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        return Request(
            prompt.tokens,
            SamplingRule(**rule, top_k=max(0, body.top_k or 0)),
            most,
            body.seed,
            min(self.drafts if body.drafts is None else body.drafts, max(0, most - 1)),
            () if body.ignore_eos else self.tokenizer.stop_ids,
            adaptive=body.drafts is None,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            steering=Steering(**penalties, logit_bias=biases),
            constraint=await self.find_constraint(body.response_format),
            **scores,
        )

    async def find_constraint(self, wish: ResponseFormat | None) -> Constraint | None:
        """Return the compiled form of an answer, or None where it is free.

        Raises:
            Problem: a form that cannot be served.
        """
        if wish is None or wish.type == "text":
            return None
        if self.compile is None:
            raise bad_request("Structured output needs llguidance, which is not installed here.", "response_format")
        source: Any = getattr(wish, wish.type, "")  # a json_object has none
        if source is None:
            raise bad_request(f"response_format of type {wish.type} needs {wish.type}.", "response_format")
        if isinstance(source, NamedSchema):
            source = json.dumps(source.schema_ or {})
        try:
            return await asyncio.to_thread(self.compile, wish.type, source)
        except ValueError as error:
            raise bad_request(str(error)[:500], "response_format") from None


async def aside(size: int, work: Callable[[], T]) -> T:
    """Do a small work here and a large one in a thread, where it keeps nobody waiting."""
    return work() if size < SHORT else await asyncio.to_thread(work)
