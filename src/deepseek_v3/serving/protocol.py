"""What clients may say, field by field with its bounds, and what they are answered: OpenAI's objects.

A field that is not named here is refused, as there. A few of ours stand beside OpenAI's: top_k, min_p,
repetition_penalty, ignore_eos, `drafts` (tokens that MTP modules propose a step) and two kinds of response_format.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

LENGTH, TOKENS = 2**20, 2**20  # characters of one text, tokens of one prompt or answer
Text = Annotated[str, Field(max_length=LENGTH)]
Short = Annotated[str, Field(max_length=512)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenName = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Small = Annotated[dict[Short, Any], Field(max_length=64)]
Finish = Literal["stop", "length", "tool_calls"]


class Said(BaseModel):
    """A part of a request: exactly these fields, and no text where a number should stand."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Said):
    """What a stream tells beside its text; `include_drafts` is ours: how each token came."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    include_drafts: bool | None = None


class NamedSchema(Said):
    """A JSON schema under a name."""

    name: Short
    description: Text | None = None
    schema_: Annotated[Small | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Said):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: NamedSchema | None = None
    regex: Annotated[str, Field(max_length=2**14)] | None = None
    grammar: Annotated[str, Field(max_length=2**16)] | None = None


class Sampling(Said):
    """How tokens are chosen, the same for both kinds of request."""

    model: Short
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=1024)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63 - 128)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None
    drafts: Annotated[int, Field(ge=0, le=32)] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Short | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these fields that were given; of the others the engine knows what is usual."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def shows(self, what: str) -> bool:
        """Whether the stream shall tell usage or drafts."""
        return bool(self.stream_options and getattr(self.stream_options, f"include_{what}"))


class CompletionRequest(Sampling):
    """A text, several, or the tokens of them, to be continued."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=1024)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=TOKENS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: Literal[""] | None = None


class Part(Said):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class CalledFunction(Said):
    """Which function, with which arguments, as the model wrote them."""

    name: Short
    arguments: Text


class ToolCall(Said):
    """A call that the model asked for."""

    id: Short | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Said):
    """One turn of a dialogue; what clients send back of an answer is taken too."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=256)] | None = None
    name: Short | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Short | None = None
    refusal: Short | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """The message as a template is handed it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        more = self.model_dump(include={"name", "tool_call_id", "tool_calls"})
        return {"role": self.role, "content": content, **{key: value for key, value in more.items() if value}}


class Function(Said):
    """A function that the model may call."""

    name: Short
    description: Text | None = None
    parameters: Small | None = None
    strict: bool | None = None


class Tool(Said):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class ChatRequest(Sampling):
    """A dialogue to be answered."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    metadata: Annotated[dict[Short, Short], Field(max_length=16)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call any."""
        return bool(self.tools) and self.tool_choice != "none"

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _say_what_tools_cannot(cls, value: Any) -> Any:
        if value not in (None, "none", "auto"):
            raise ValueError("only 'none' and 'auto' are served here: the model itself decides whether it calls")
        return value


class Usage(BaseModel):
    """Tokens read, of them found in the cache, and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Choice(BaseModel):
    """What was written, without the text itself."""

    index: int
    logprobs: dict[str, list[Any] | None] | None
    finish_reason: Finish


class TextChoice(Choice):
    """A text."""

    text: str


class Answer(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Choice):
    """A message."""

    message: Answer


class Written(BaseModel):
    """An answer, without its choices."""

    id: str
    object: Literal["text_completion", "chat.completion"]
    created: int
    model: str
    usage: Usage


class Completion(Written):
    """The answer to a completion request."""

    choices: list[TextChoice]


class ChatCompletion(Written):
    """The answer to a chat request."""

    choices: list[ChatChoice]


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[Model]


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer to what cannot be served."""

    error: ErrorObject
