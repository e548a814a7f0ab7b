"""The routes: OpenAI's protocol, the page, health and metrics.

app = make_app(served, worker, metrics, GuardOptions(keys=["secret"]))       an ASGI application
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from deepseek_v3.serving.answers import AnswerBase, ChatAnswer, TextAnswer
from deepseek_v3.serving.guard import OPEN_PATHS, Guard, GuardOptions
from deepseek_v3.serving.metrics import GAUGES, TOTALS, Metrics
from deepseek_v3.serving.problems import Problem, ServerFault, bad_request
from deepseek_v3.serving.prompts import Served
from deepseek_v3.serving.protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Model,
    ModelList,
)
from deepseek_v3.serving.worker import Job, Worker

BAD_JSON = "We could not parse the JSON body of your request."
PAGE = Path(__file__).parent / "page.html"
INLINE = "'unsafe-inline'"  # the page is one file
CONTENT_POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; connect-src 'self'; img-src data:"
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
SAID = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
ERRORS_OF_TEXT: dict[int | str, dict[str, Any]] = {  # of a route whose answer is text: a model would take its kind
    status: {"description": "Error", "content": SAID} for status in ("4XX", "5XX")
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
ModelName = Annotated[str, InPath(max_length=512)]


def make_app(served: Served, worker: Worker, metrics: Metrics, options: GuardOptions) -> Guard:
    """Return the application; its lifespan is the worker's."""

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await worker.close()

    app = FastAPI(title="deepseek-v3", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=live)
    for kind in (Problem, RequestValidationError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, tell_error)
    add_state_routes(app, worker, metrics)
    add_model_routes(app, served, worker)
    if options.keys:
        describe_keys(app.openapi())
    guard = Guard(app, options, metrics)
    guard.worker, guard.routes = worker, app
    return guard


def describe_keys(schema: dict[str, Any]) -> None:
    """Say in the description of the routes which of them want a key; `guard.py` is what asks for it."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for about in methods.values() if path not in OPEN_PATHS else ():
            about["security"] = [{"key": []}]


def add_state_routes(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    """Add the page and what tells of the server's state."""

    @app.get("/", response_class=HTMLResponse, responses=ERRORS_OF_TEXT)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"content-security-policy": CONTENT_POLICY})

    @app.get("/health", responses={503: {"model": ErrorAnswer}})
    async def health() -> dict[str, str]:
        if not worker.alive:
            raise ServerFault("The engine has stopped.", status=503)
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": ErrorAnswer}})
    async def ready() -> dict[str, str]:
        if not worker.alive or worker.load >= worker.capacity:
            raise ServerFault("The server takes no further request now.", status=503, retry_after_s=1)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses={**TEXT, **ERRORS_OF_TEXT})
    async def read_metrics() -> Response:
        numbers = await worker.ask(lambda engine: engine.metrics())
        return PlainTextResponse(metrics.text(numbers, worker.load), media_type="text/plain; version=0.0.4")

    @app.get("/live", responses=ERRORS)
    async def state() -> dict[str, Any]:
        numbers, blocks = await worker.ask(lambda engine: (engine.metrics(), engine.block_map()))
        found = {name: getattr(numbers, name) for name in (*GAUGES, *TOTALS)}
        return {**found, "load": worker.load, "capacity": worker.capacity, "block_map": blocks}


def add_model_routes(app: FastAPI, served: Served, worker: Worker) -> None:
    """Add OpenAI's routes."""
    model = {"id": served.name, "object": "model", "created": served.created}
    model |= {"owned_by": "deepseek-v3-from-scratch", "max_model_len": served.context}

    @app.get("/v1/models", response_model=ModelList, responses=ERRORS)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", response_model=Model, responses=ERRORS)
    async def show_model(name: ModelName) -> dict[str, Any]:
        served.check_model(name)
        return model

    @app.post("/v1/completions", response_model=Completion, responses={200: STREAM, **ERRORS})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        served.check_model(body.model)
        if body.best_of not in (None, body.n or 1):
            raise bad_request("best_of must equal n: every text that is written is returned.", "best_of")
        prompts, wanted = await served.read_completion(body), []
        for prompt in prompts:
            most = served.most_tokens(prompt, 16 if body.max_tokens is None else body.max_tokens, "prompt")
            before = (body.logprobs or 0) if body.echo or not most else None
            wanted.append(await served.make_request(body, prompt, most, logprobs=body.logprobs, prompt_logprobs=before))
        job = worker.submit([(one, body.n or 1) for one in wanted])
        return await answer(TextAnswer(served, body, prompts), job, request)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: STREAM, **ERRORS})
    async def chat(body: ChatRequest, request: Request) -> Response:
        served.check_model(body.model)
        if body.top_logprobs and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise bad_request("max_tokens and max_completion_tokens are the same; give one.", "max_tokens")
        prompt = await served.read_chat(body)
        most = served.most_tokens(prompt, body.max_completion_tokens or body.max_tokens, "messages")
        scores = (body.top_logprobs or 0) if body.logprobs else None
        wanted = await served.make_request(body, prompt, most, logprobs=scores)
        job = worker.submit([(wanted, body.n or 1)])
        return await answer(ChatAnswer(served, body, [prompt]), job, request)

    @app.post("/v1/responses", responses=ERRORS)
    async def respond() -> Response:
        raise Problem(404, "The Responses API is not served here; use /v1/chat/completions.", code="unknown_url")


async def answer(answer: AnswerBase, job: Job, request: Request) -> Response:
    """Answer with a stream, or with the whole once it is there; a client that is gone frees its blocks."""
    if answer.body.stream:
        return EventStream(answer, job)  # it cancels the job, whatever happens
    async with watched(request.receive, job):
        await job.admitted()
        async for piece in job:
            answer.grow(piece)
        return Response(status_code=499) if job.gone else JSONResponse(answer.whole())


@asynccontextmanager
async def watched(receive: Any, job: Job) -> AsyncIterator[None]:
    """Cancel a job when its client goes away, and at the end in any case."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        job.cancel()


class EventStream(Response):
    """Server-sent events, one a step, and [DONE] exactly once."""

    def __init__(self, answer: AnswerBase, job: Job) -> None:
        super().__init__(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self.answer, self.job = answer, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send what comes until it is over or the client is gone."""
        async with watched(receive, self.job):
            try:
                await self.job.admitted()
            except Problem as problem:
                return await tell(problem)(scope, receive, send)
            headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in self.events():
                line = b"data: " + data + b"\n\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
            return await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the data of every event."""
        answer = self.answer
        try:
            for part in answer.opening():
                yield pack(answer.chunk([part]))
            async for piece in self.job:
                for part in answer.grow(piece):
                    yield pack(answer.chunk([part]))
            if answer.body.shows("usage"):
                yield pack(answer.chunk([], usage=answer.usage()))
        except Problem as problem:
            yield pack(problem.body())
        yield b"[DONE]"


def pack(content: dict[str, Any]) -> bytes:
    """JSON in UTF-8, on one line."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def tell(problem: Problem) -> Response:
    """A problem as an answer."""
    return JSONResponse(problem.body(), problem.status, headers=problem.headers)


async def tell_error(request: Request, error: Exception) -> Response:
    """Whatever was raised, as an error object."""
    if isinstance(error, RequestValidationError):
        return tell(find_fault(error))
    if isinstance(error, StarletteHTTPException):
        return tell(find_route_fault(request, error))
    return tell(error if isinstance(error, Problem) else ServerFault())


def find_route_fault(request: Request, error: StarletteHTTPException) -> Problem:
    """An address that is none, a method that it does not have, or a body that no parser takes."""
    where = f"{request.method} {request.url.path[:200]}".encode("ascii", "replace").decode()
    if error.status_code == 404:
        return Problem(404, f"Invalid URL ({where})", code="unknown_url")
    if error.status_code == 405:
        problem = Problem(405, f"Not allowed to {where}", code="method_not_supported")
        problem.headers = dict(error.headers or {})
        return problem
    return bad_request(BAD_JSON)


def find_fault(error: RequestValidationError) -> Problem:
    """The first fault of a body, in OpenAI's words where it has some."""
    fault = error.errors()[0]
    place = [str(part)[:80] for part in fault["loc"] if part != "body"]
    param = ".".join(place).encode("ascii", "replace").decode() or None
    if fault["type"] == "json_invalid":
        return bad_request(BAD_JSON)
    if fault["type"] == "extra_forbidden":
        return bad_request(f"Unrecognized request argument supplied: {param}", param)
    if fault["type"] == "missing":
        return bad_request(f"Missing required parameter: '{param}'.", param)
    return bad_request(f"{param or 'the body'}: {str(fault['msg'])[:300]}", place[0] if place else None)
