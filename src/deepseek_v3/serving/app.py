"""The routes: OpenAI's protocol, the page, health and metrics.

app = make_app(served, worker, metrics, GuardOptions(keys=["secret"]))       an ASGI application
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from deepseek_v3.engine.engine import Engine
from deepseek_v3.serving import protocol
from deepseek_v3.serving.answers import AnswerBase, ChatAnswer, TextAnswer
from deepseek_v3.serving.guard import OPEN_PATHS, Guard, GuardOptions
from deepseek_v3.serving.metrics import Metrics
from deepseek_v3.serving.problems import Problem, ServerFault, bad_request
from deepseek_v3.serving.prompts import Served
from deepseek_v3.serving.worker import Job, Worker

LABELS = ("list[", "constrained-")  # pydantic's, of one of the kinds that a field may be
BAD_JSON = "We could not parse the JSON body of your request."
PAGE = Path(__file__).parent / "page.html"
INLINE = "'unsafe-inline'"  # the page is one file
CONTENT_POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; connect-src 'self'; img-src data:"
STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}
SAID = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}  # whatever the route answers with
ERRORS: dict[int | str, dict[str, Any]] = {code: {"description": "Error", "content": SAID} for code in ("4XX", "5XX")}
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

    app = FastAPI(
        title="deepseek-v3", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=live, responses=ERRORS
    )
    for kind in (Problem, RequestValidationError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, tell_error)
    add_state_routes(app, worker, metrics)
    add_model_routes(app, served, worker)
    if options.keys:
        describe_keys(app.openapi())
    return Guard(app, options, metrics, worker)


def describe_keys(schema: dict[str, Any]) -> None:
    """Say in the description of the routes which of them want a key; `guard.py` is what asks for it."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for about in methods.values() if path not in OPEN_PATHS else ():
            about["security"] = [{"key": []}]


def add_state_routes(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    """Add the page and what tells of the server's state."""

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"content-security-policy": CONTENT_POLICY})

    def look() -> Engine:
        if not worker.alive:
            raise ServerFault("The engine has stopped.", 503)
        return worker.engine

    @app.get("/health", responses={503: {"model": protocol.ErrorAnswer}})
    async def health() -> dict[str, str]:
        look()
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": protocol.ErrorAnswer}})
    async def ready() -> dict[str, str]:
        if not worker.alive or worker.load >= worker.capacity:
            raise ServerFault("The server takes no further request now.", 503, **{"retry-after": "1"})
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=TEXT)
    async def read_metrics() -> Response:
        return PlainTextResponse(metrics.text(look().metrics(), worker.load), media_type="text/plain; version=0.0.4")

    @app.get("/live")
    async def state() -> dict[str, Any]:
        numbers, blocks = look().metrics(), worker.engine.block_map()
        return {**asdict(numbers), "load": worker.load, "capacity": worker.capacity, "block_map": blocks}


def add_model_routes(app: FastAPI, served: Served, worker: Worker) -> None:
    """Add OpenAI's routes."""
    model = {"id": served.name, "object": "model", "created": served.created}
    model |= {"owned_by": "deepseek-v3-from-scratch", "max_model_len": served.context}

    @app.get("/v1/models", response_model=protocol.ModelList)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", response_model=protocol.Model)
    async def show_model(name: ModelName) -> dict[str, Any]:
        served.check_model(name)
        return model

    @app.post("/v1/completions", response_model=protocol.Completion, responses={200: STREAM})
    async def complete(body: protocol.CompletionRequest, request: Request) -> Response:
        prompts, wanted = await served.plan_completion(body)
        return await answer(TextAnswer(served, body, prompts), worker.submit(wanted, body.n or 1), request)

    @app.post("/v1/chat/completions", response_model=protocol.ChatCompletion, responses={200: STREAM})
    async def chat(body: protocol.ChatRequest, request: Request) -> Response:
        prompts, wanted = await served.plan_chat(body)
        return await answer(ChatAnswer(served, body, prompts), worker.submit(wanted, body.n or 1), request)

    @app.post("/v1/responses")
    async def respond() -> Response:
        raise Problem(404, "The Responses API is not served here; use /v1/chat/completions.", code="unknown_url")


async def answer(answer: AnswerBase, job: Job, request: Request) -> Response:
    """Answer with a stream, or with the whole once it is there; a client that is gone frees its blocks."""
    if answer.body.stream:
        return EventStream(answer, job)  # it cancels the job, whatever happens
    async with watched(request.receive, job):
        await job.admitted()
        async for what in job:
            answer.grow(*what)
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


class EventStream(StreamingResponse):
    """Server-sent events, one a step, and [DONE] exactly once."""

    def __init__(self, answer: AnswerBase, job: Job) -> None:
        events = write_events(answer, job)
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send what comes until it is over or the client is gone."""
        async with watched(receive, self.job):
            try:
                await self.job.admitted()
            except Problem as problem:
                return await problem.answer()(scope, receive, send)
            return await self.stream_response(send)


async def write_events(answer: AnswerBase, job: Job) -> AsyncIterator[bytes]:
    """Yield the lines of every event."""
    try:
        for part in answer.opening():
            yield pack(answer.chunk([part]))
        async for what in job:
            for part in answer.grow(*what):
                yield pack(answer.chunk([part]))
        if answer.body.shows("usage"):
            yield pack(answer.chunk([], usage=answer.usage()))
    except Problem as problem:
        yield pack(problem.body)
    yield b"data: [DONE]\n\n"


def pack(content: dict[str, Any]) -> bytes:
    """An event: JSON in UTF-8, on one line."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {data}\n\n".encode()


async def tell_error(request: Request, error: Exception) -> Response:
    """Whatever was raised, as an error object."""
    if isinstance(error, RequestValidationError):
        error = find_fault(error)
    elif isinstance(error, StarletteHTTPException):
        error = find_route_fault(request, error)
    return (error if isinstance(error, Problem) else ServerFault()).answer()


def find_route_fault(request: Request, error: StarletteHTTPException) -> Problem:
    """An address that is none, a method that it does not have, or a body that no parser takes."""
    where = f"{request.method} {request.url.path[:200]}".encode("ascii", "replace").decode()
    said = {404: (f"Invalid URL ({where})", "unknown_url"), 405: (f"Not allowed to {where}", "method_not_supported")}
    if error.status_code not in said:
        return bad_request(BAD_JSON)
    message, code = said[error.status_code]
    return Problem(error.status_code, message, code=code, headers=error.headers)


def find_fault(error: RequestValidationError) -> Problem:
    """The first field at fault, in OpenAI's words where it has some; if it may be several things, as the nearest."""
    faults = error.errors()
    near = [fault for fault in faults if fault["loc"][:2] == faults[0]["loc"][:2]]
    fault = max(near, key=lambda fault: (len(fault["loc"]), not fault["type"].endswith("_type")))
    place = [str(part)[:80] for part in fault["loc"][1:] if not str(part).startswith(LABELS)]
    param = ".".join(place).encode("ascii", "replace").decode() or None
    if fault["type"] == "json_invalid" or not place:
        return bad_request(BAD_JSON)
    if fault["type"] == "extra_forbidden":
        return bad_request(f"Unrecognized request argument supplied: {param}", param)
    if fault["type"] == "missing":
        return bad_request(f"Missing required parameter: '{param}'.", param)
    return bad_request(f"{param}: {fault['msg'].removeprefix('Value error, ')[:300]}", place[0])
