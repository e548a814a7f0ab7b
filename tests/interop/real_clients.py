"""Real clients speak to a server; run in their own environment by test_clients.py (`make test-interop` makes it).

    python real_clients.py JOB.json OUT.json     a job: {"url": ..., "key": ..., "seed": ..., "count": ..., "do": NAME}

OUT holds what was done and every failure, in words. A client that validates does so strictly.
"""

import asyncio
import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", OPENAI_API_KEY="none", LANGSMITH_TRACING="false")
WORDS = ["the quick", "héllo wörld", "你好世界", "🙂🙃 again", "fox", "brown fox jumps"]
STOPS = ["e", ["你", "zz"], "the", ["\n", "🙂", "x", "q"]]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def draw_parameters(luck: random.Random, *, chat: bool) -> dict[str, Any]:
    """Return a combination of what OpenAI's protocol knows; each field is there or not."""
    every: dict[str, Callable[[], Any]] = {
        "temperature": lambda: luck.choice([0, 0.0, 0.3, 1, 1.7, 2]),
        "top_p": lambda: luck.choice([0.1, 0.9, 1]),
        "presence_penalty": lambda: luck.choice([-2, -0.5, 0, 1.1, 2]),
        "frequency_penalty": lambda: luck.choice([-2, 0.0, 0.5, 2]),
        "seed": lambda: luck.choice([0, 1, 7, 2**40]),
        "stop": lambda: luck.choice(STOPS),
        "n": lambda: luck.choice([1, 2, 3]),
        "logit_bias": lambda: {str(luck.randrange(300)): luck.choice([-100, -2, 5, 100])},
        "user": lambda: luck.choice(["somebody", "你"]),
        "max_tokens": lambda: luck.randint(1, 24),
    }
    if chat:
        every |= {
            "logprobs": lambda: luck.random() < 0.7,
            "response_format": lambda: luck.choice([{"type": "text"}, {"type": "json_object"}]),
            "max_completion_tokens": lambda: luck.randint(1, 24),
        }
    else:
        every |= {"logprobs": lambda: luck.randint(0, 5), "echo": lambda: luck.random() < 0.5, "best_of": lambda: 1}
    found = {name: draw() for name, draw in every.items() if luck.random() < 0.4}
    if "max_completion_tokens" in found:
        found.pop("max_tokens", None)
    elif "max_tokens" not in found and chat:
        found["max_tokens"] = 9  # else a text as long as the context
    if found.get("logprobs") is True and luck.random() < 0.5:
        found["top_logprobs"] = luck.randint(0, 4)
    if found.get("n", 1) > 1:
        found.pop("best_of", None)
    return found


def draw_messages(luck: random.Random) -> list[dict[str, Any]]:
    """Return a dialogue of a few turns."""
    turns = [{"role": "system", "content": "be brief"}] if luck.random() < 0.3 else []
    for _ in range(luck.randint(0, 2)):
        turns += [{"role": "user", "content": luck.choice(WORDS)}, {"role": "assistant", "content": luck.choice(WORDS)}]
    content: Any = luck.choice(WORDS)
    return [
        *turns,
        {"role": "user", "content": [{"type": "text", "text": content}] if luck.random() < 0.2 else content},
    ]


def settled(body: dict[str, Any]) -> bool:
    """Whether two requests with these parameters must give the same text."""
    return body.get("temperature") == 0 or "seed" in body


def clean(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False)[:300]


class Report:
    """What was tried, and what went wrong."""

    def __init__(self) -> None:
        self.done, self.failures, self.found = 0, [], {}

    def attempt(self, what: str, work: Callable[..., Any], *about: Any) -> Any:
        """Do one thing; a failure is noted, with its last lines."""
        self.done += 1
        try:
            return work(*about)
        except Exception:
            self.failures.append(f"{what}: {traceback.format_exc()[-1500:]}")

    def expect(self, name: str, work: Callable[..., Any], *about: Any) -> None:
        """Do what must fail; note the error's class, status, code and words."""
        self.done += 1
        try:
            work(*about)
        except Exception as error:
            said = {"kinds": [kind.__name__ for kind in type(error).__mro__], "words": str(error)}
            said |= {part: getattr(error, part, None) for part in ("status_code", "code", "type")}
            self.found[name] = said
        else:
            self.failures.append(f"{name}: nothing was raised")


# openai, which checks every field of every answer here


def join_texts(chunks: list[Any]) -> list[str]:
    texts: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        shown = choice.text if hasattr(choice, "text") else choice.delta.content
        texts[choice.index] = texts.get(choice.index, "") + (shown or "")
    return [texts[i] for i in sorted(texts)]


def compare_openai(create: Callable[..., Any], body: dict[str, Any]) -> None:
    """Ask for the whole and for the stream of it."""
    whole = create(**body)
    count = body.get("n", 1)
    assert [choice.index for choice in whole.choices] == list(range(count)), whole
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    chunks = list(create(**body, stream=True, stream_options={"include_usage": True}))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(ends) == count, ends
    assert chunks[-1].usage.prompt_tokens == usage.prompt_tokens
    if settled(body):
        texts = [choice.text if hasattr(choice, "text") else choice.message.content for choice in whole.choices]
        assert join_texts(chunks) == texts, (join_texts(chunks), texts)
        assert chunks[-1].usage == usage, (chunks[-1].usage, usage)


def make_openai(job: dict[str, Any], kind: str = "OpenAI", **more: Any) -> Any:
    import openai

    settings = {"base_url": job["url"], "api_key": job["key"], "max_retries": 0, "timeout": 120}
    return getattr(openai, kind)(**{**settings, "_strict_response_validation": True, **more})


def speak_openai(job: dict[str, Any], report: Report) -> None:
    """Many combinations, and each helper of the client once."""
    client, luck = make_openai(job), random.Random(job["seed"])
    lenient = make_openai(job, _strict_response_validation=False)

    def create_text(**body: Any) -> Any:
        """The client's type of a text in a stream wants an end in every chunk, which OpenAI itself does not send."""
        return (lenient if body.get("stream") else client).completions.create(**body)

    for i in range(job["count"]):
        chat = i % 2 == 0
        body = draw_parameters(luck, chat=chat)
        if chat:
            create, body = client.chat.completions.create, {**body, "messages": draw_messages(luck)}
        else:
            create, body = create_text, {**body, "prompt": luck.choice(WORDS)}
        report.attempt(clean(body), compare_openai, create, {"model": "tiny", **body})
    report.attempt("models", lambda: report.found.update(models=[model.id for model in client.models.list()]))
    report.attempt("a model", lambda: client.models.retrieve("tiny"))
    report.attempt("ours", lambda: speak_our_fields(client))
    report.attempt("prompts", lambda: speak_prompts(client))
    report.attempt("helper of streams", lambda: speak_stream_helper(client))
    report.attempt("raw answer", lambda: speak_raw(client))
    report.attempt("asynchronous", lambda: asyncio.run(speak_async(job)))
    report.attempt("parse", lambda: speak_parse(client))
    for name, changes in ERRORS.items():
        report.expect(name, spoil, job, changes)
    report.expect("responses", lambda: client.responses.create(model="tiny", input="a"))


ERRORS: dict[str, dict[str, Any]] = {
    "too long": {"prompt": "fox " * 5000},
    "too many tokens": {"max_tokens": 100_000},
    "wrong key": {"key": "sk-wrong-key-0123456789abcdef"},
    "no such model": {"model": "gpt-4o"},
    "out of bounds": {"temperature": 3},
}


def spoil(job: dict[str, Any], changes: dict[str, Any]) -> None:
    """Ask for what cannot be served."""
    changes = dict(changes)
    client = make_openai({**job, "key": changes.pop("key", job["key"])})
    client.completions.create(**{"model": "tiny", "prompt": "a", "max_tokens": 2, **changes})


def speak_our_fields(client: Any) -> None:
    ours = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "drafts": 2}
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=7, extra_body=ours)
    assert answer.usage.completion_tokens == 7


def speak_prompts(client: Any) -> None:
    for prompt in (["a", "你"], [5, 6, 7], [[5, 6], [7]]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=2)
        assert len(answer.choices) == (1 if prompt == [5, 6, 7] else 2)


def speak_stream_helper(client: Any) -> None:
    """With a form that ends by itself: of an answer that was cut this helper makes an error, and rightly."""
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "the quick"}], "logprobs": True}
    body |= {"max_tokens": 9, "seed": 3, "extra_body": {"response_format": {"type": "regex", "regex": "[a-f]{4}"}}}
    with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    whole = client.chat.completions.create(**body)
    assert final.choices[0].message.content == whole.choices[0].message.content
    rows = [choice.choices[0].logprobs.content for choice in (final, whole)]
    assert [row.token for row in rows[0]] == [row.token for row in rows[1]]


def speak_raw(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=2
    )
    assert raw.parse().choices[0].message.role == "assistant"


async def speak_async(job: dict[str, Any]) -> None:
    async with make_openai(job, "AsyncOpenAI", _strict_response_validation=False) as client:

        async def one(i: int) -> str:
            stream = await client.completions.create(model="tiny", prompt="a", seed=i % 3, max_tokens=9, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*(one(i) for i in range(12)))
        assert texts[:3] * 4 == list(texts), texts


def speak_parse(client: Any) -> None:
    """A class of Python as a schema: what an untrained model says is an object of it."""
    from typing import Literal

    from pydantic import BaseModel, Field

    class Point(BaseModel):
        x: int = Field(ge=0, le=99)
        colour: Literal["red", "grün"]
        inside: bool

    messages = [{"role": "user", "content": "where?"}]
    for seed in range(5):
        answer = client.chat.completions.parse(
            model="tiny", messages=messages, response_format=Point, seed=seed, max_tokens=200
        )
        assert isinstance(answer.choices[0].message.parsed, Point)


# tools, by every client


def speak_tools(job: dict[str, Any], report: Report) -> None:
    """A call is asked for by a form that is the call; it is made, and its result handed back."""
    client = make_openai(job)
    body: dict[str, Any] = {"model": "tiny", "tools": [WEATHER], "max_tokens": 200}
    body["extra_body"] = {"response_format": {"type": "regex", "regex": job["regex"]}}
    messages: list[Any] = [{"role": "user", "content": "the weather?"}]

    def whole() -> None:
        message = client.chat.completions.create(**body, messages=messages).choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Rome"}
        result = {"role": "tool", "tool_call_id": call.id, "content": "12 and sun"}
        back = client.chat.completions.create(
            model="tiny", tools=[WEATHER], max_tokens=5, messages=[*messages, message, result]
        )
        assert back.choices[0].message.role == "assistant"

    def stream() -> None:
        chunks = list(client.chat.completions.create(**body, messages=messages, stream=True))
        calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
        assert [(call.index, call.function.name) for call in calls] == [(0, "weather")]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    def chain() -> None:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(
            base_url=job["url"], api_key=job["key"], model="tiny", max_tokens=200, extra_body=body["extra_body"]
        ).bind_tools([WEATHER])
        for answer in (model.invoke("the weather?"), sum_chunks(model.stream("the weather?"))):
            assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("weather", {"city": "Rome"})]

    def lite() -> None:
        import litellm

        where = {"api_base": job["url"], "api_key": job["key"], "messages": messages, "max_tokens": 200}
        answer = litellm.completion(model="openai/tiny", tools=[WEATHER], extra_body=body["extra_body"], **where)
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})

    for name, work in (("whole", whole), ("stream", stream), ("langchain", chain), ("litellm", lite)):
        report.attempt(name, work)


# langchain-openai


def sum_chunks(chunks: Any) -> Any:
    """Add up what a stream brought."""
    first, *rest = chunks
    for chunk in rest:
        first = first + chunk
    return first


def speak_langchain(job: dict[str, Any], report: Report) -> None:
    """Chat models and text models, whole and streamed."""
    from langchain_openai import ChatOpenAI, OpenAI

    luck = random.Random(job["seed"])
    where = {"base_url": job["url"], "api_key": job["key"], "model": "tiny", "max_retries": 0}

    def chat(body: dict[str, Any], messages: list[Any], n: int) -> None:
        model = ChatOpenAI(**where, **body, n=n, stream_usage=True)
        whole = model.invoke(messages)
        assert whole.usage_metadata["output_tokens"] >= 0
        alone = ChatOpenAI(**where, **body, stream_usage=True)
        streamed = sum_chunks(alone.stream(messages))
        assert streamed.usage_metadata["input_tokens"] == whole.usage_metadata["input_tokens"]
        if settled(body):
            assert streamed.content == whole.content, (streamed.content, whole.content)

    def text(body: dict[str, Any], prompt: str) -> None:
        model = OpenAI(**where, **body)
        whole, streamed = model.invoke(prompt), "".join(model.stream(prompt))
        if settled(body):
            assert whole == streamed, (whole, streamed)

    for i in range(job["count"]):
        body = draw_parameters(luck, chat=i % 2 == 0)
        n = body.pop("n", 1)
        if "user" in body:
            body["model_kwargs"] = {"user": body.pop("user")}
        if i % 2 == 0:
            body.pop("response_format", None)  # with one it makes an error of every answer that was cut
            messages = draw_messages(luck)
            report.attempt(clean(body), chat, body, messages, n)
        else:
            body = {"max_tokens": 9, **body}
            for name in ("stop", "echo"):
                if name in body:
                    body.setdefault("model_kwargs", {})[name] = body.pop(name)
            report.attempt(clean(body), text, body, luck.choice(WORDS))
    report.attempt("batch", lambda: ChatOpenAI(**where, max_tokens=3).batch(WORDS))
    report.attempt("structured", lambda: structure_langchain(where))
    report.expect("too long", lambda: ChatOpenAI(**where).invoke("fox " * 5000))
    report.expect("wrong key", lambda: ChatOpenAI(**{**where, "api_key": "sk-wrong-key-0123456789abcdef"}).invoke("a"))


def structure_langchain(where: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel, Field

    class Point(BaseModel):
        """A place."""

        x: int = Field(ge=0, le=99)
        inside: bool

    model = ChatOpenAI(**where, max_tokens=200, seed=1).with_structured_output(Point, method="json_schema")
    assert isinstance(model.invoke("where?"), Point)


# litellm


def speak_litellm(job: dict[str, Any], report: Report) -> None:
    """Both kinds of request, whole and streamed."""
    import litellm

    luck = random.Random(job["seed"])
    where = {"api_base": job["url"], "api_key": job["key"], "max_retries": 0}

    def chat(body: dict[str, Any], messages: list[Any]) -> None:
        asked = {**where, **body, "model": "openai/tiny", "messages": messages}
        whole = litellm.completion(**asked)
        assert len(whole.choices) == body.get("n", 1)
        asked.pop("n", None)
        chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        if settled(body):
            assert text == (whole.choices[0].message.content or ""), (text, whole.choices[0].message.content)
        assert (
            whole.usage.prompt_tokens == next(c.usage for c in reversed(chunks) if getattr(c, "usage", 0)).prompt_tokens
        )

    def text(body: dict[str, Any], prompt: str) -> None:
        asked = {**where, **body, "model": "text-completion-openai/tiny", "prompt": prompt}
        whole = litellm.text_completion(**asked)
        assert len(whole.choices) == body.get("n", 1)
        asked.pop("n", None)
        chunks = list(litellm.text_completion(**asked, stream=True))
        said = "".join(choice.text or "" for chunk in chunks for choice in chunk.choices)
        if settled(body):
            assert said == whole.choices[0].text, (said, whole.choices[0].text)

    for i in range(job["count"]):
        body = draw_parameters(luck, chat=i % 2 == 0)
        if i % 2 == 0:
            messages = draw_messages(luck)
            report.attempt(clean(body), chat, body, messages)
        else:
            body = {"max_tokens": 9, **body}
            report.attempt(clean(body), text, body, luck.choice(WORDS))
    asked = {**where, "model": "openai/tiny", "messages": [{"role": "user", "content": "fox " * 5000}]}
    report.expect("too long", lambda: litellm.completion(**asked))
    report.expect("wrong key", lambda: litellm.completion(**{**asked, "api_key": "sk-wrong-key-0123456789abcdef"}))


# schemas


def speak_schemas(job: dict[str, Any], report: Report) -> None:
    """What an untrained model says under each schema, whole or streamed."""
    client = make_openai(job)
    said = report.found["said"] = []

    def ask(seed: int, schema: dict[str, Any]) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "go"}], "response_format": form, "seed": seed}
        body |= {"temperature": 1.2 if seed % 3 else 0, "max_tokens": 700, "extra_body": {"drafts": seed % 4}}
        if seed % 2:
            chunks = list(client.chat.completions.create(**body, stream=True))
            ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
            said.append([seed, join_texts(chunks)[0], ends[0]])
        else:
            choice = client.chat.completions.create(**body).choices[0]
            said.append([seed, choice.message.content, choice.finish_reason])

    for seed, schema in enumerate(job["schemas"]):
        report.attempt(f"schema {seed}", ask, seed, schema)


def main() -> None:
    """Do what the job names."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    report = Report()
    globals()[f"speak_{job['do']}"](job, report)
    said = {"done": report.done, "failures": report.failures, "found": report.found}
    Path(sys.argv[2]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
