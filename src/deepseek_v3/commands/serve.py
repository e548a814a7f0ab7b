"""The command `deepseek-v3 serve`: OpenAI's protocol, and a page, around the engine.

    deepseek-v3 serve RUN                        http://127.0.0.1:8000, for this machine alone
    DEEPSEEK_V3_API_KEY=... deepseek-v3 serve RUN --host 0.0.0.0

This file imports no PyTorch until the command runs.
"""

import os
import socket
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import tyro

from deepseek_v3.commands.loading import load_writer

KEY_VARIABLE = "DEEPSEEK_V3_API_KEY"
USUAL_CONTEXT = 4096  # tokens of cache a row, where nothing is said
STEP_TOKENS = 256


@dataclass
class ServeOptions:
    """Serve a trained model by OpenAI's protocol, with a page at /."""

    run: tyro.conf.Positional[str]
    """a run folder, or a Hugging Face directory"""
    host: str = "127.0.0.1"
    """address to listen on; beyond this machine an API key is required"""
    port: int = 8000
    """port to listen on; 0 takes a free one"""
    api_key: tuple[str, ...] = ()
    """clients must send one of these keys; better from the environment: DEEPSEEK_V3_API_KEY"""
    name: str = ""
    """the model's name for clients; the folder's name by default"""
    max_rows: int = 8
    """texts that are written side by side"""
    queue: int = 64
    """texts that may wait beside them; further requests get 429"""
    cache_tokens: int = 0
    """tokens that the cache holds, for all texts together; 0 = 4096 for each side by side, or the context if shorter"""
    speculative: int | None = None
    """tokens to draft per step where a request does not say; by default one for each MTP module"""
    body_kilobytes: int = 4096
    """size of a request at most"""
    drain_seconds: int = 30
    """how long running texts may go on when the server is told to stop"""
    without_mtp: bool = False
    """leave the multi-token prediction layers out, where a checkpoint holds only a part of them"""
    dtype: str | None = None
    """float32, bfloat16, or fp8: all matrices in 8 bits, the head too; by default as stored"""
    device: str = "auto"
    """auto, cpu or cuda; auto takes a GPU where PyTorch sees one"""


def run_serve(options: ServeOptions) -> None:
    """Load, listen, and serve until told to stop.

    Raises:
        ValueError: options that cannot work; ImportError: what is not installed; OSError: no such folder.
    """
    keys = check_options(options)
    try:
        import fastapi  # noqa: F401  # asked for before minutes of loading
    except ImportError:
        raise ImportError("a server needs more packages: pip install 'deepseek-v3-from-scratch[serve]'") from None
    with listen(options.host, options.port) as door:
        model, tokenizer = load_writer(
            options.run, dtype=options.dtype, device=options.device, without_mtp=options.without_mtp
        )
        app, told = build_app(model, tokenizer, options, keys)
        host, port = door.getsockname()[:2]
        print(f"{told}\nhttp://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends what runs, then stops)")
        sys.stdout.flush()
        make_server(app, options).run(sockets=[door])


def check_options(options: ServeOptions) -> list[str]:
    """Return the keys.

    Raises:
        ValueError: an option out of range, or no key on an address that others reach.
    """
    for name, low, high in (
        ("port", 0, 65535), ("max_rows", 1, 1024), ("queue", 0, 2**16), ("cache_tokens", 0, 2**40),
        ("body_kilobytes", 1, 2**20), ("drain_seconds", 0, 86400),
    ):  # fmt: skip
        if not low <= getattr(options, name) <= high:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(options, name)} must lie between {low} and {high}")
    keys = [*options.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    if wrong := [key for key in keys if not (key.isascii() and key.isprintable() and key.split() == [key])]:
        raise ValueError(f"--api-key {wrong[0][:3]!r}... must be letters, digits and signs of ASCII, without spaces")
    if not keys and not stays_here(options.host):
        raise ValueError(f"--host {options.host} is open to other machines: give --api-key, or set {KEY_VARIABLE}")
    return keys


def stays_here(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Open the door before the model is loaded.

    Raises:
        ValueError: an address that is none, or taken.
    """
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, UnicodeError, ValueError) as error:
        door.close()
        said = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--host {host[:100]} --port {port}: {said.lower()}; name another") from None
    return door


def build_app(model: Any, tokenizer: Any, options: ServeOptions, keys: list[str]) -> tuple[Any, str]:
    """Make the engine and the application around it; return it, and a line about what is served.

    Raises:
        ValueError: a template that does not work, or more drafts than a step has room for.
    """
    from deepseek_v3.data.chat import ChatError, ChatTemplate
    from deepseek_v3.engine.engine import Engine
    from deepseek_v3.engine.request import EngineOptions, count_drafts
    from deepseek_v3.serving.app import make_app
    from deepseek_v3.serving.guard import GuardOptions
    from deepseek_v3.serving.metrics import Metrics
    from deepseek_v3.serving.prompts import Served
    from deepseek_v3.serving.worker import Worker

    drafts = count_drafts(model, len(model.mtp) if options.speculative is None else options.speculative)
    context = model.config.max_position_embeddings
    held = options.cache_tokens or options.max_rows * min(context, USUAL_CONTEXT)
    limits = EngineOptions(
        n_blocks=-(-held // 32),
        max_rows=options.max_rows,
        step_tokens=max(STEP_TOKENS, drafts + 1),
        fp8_drafts=drafts > 0,
    )
    try:
        engine = Engine(model, limits, stream=tokenizer.stream)
    except RuntimeError:  # PyTorch's word for too little memory
        raise ValueError(f"there is no memory for a cache of {held:,} tokens; give a smaller --cache-tokens") from None
    try:
        template = ChatTemplate.find(tokenizer)
    except ChatError as error:
        template = None
        print(f"no /v1/chat/completions: {error}", file=sys.stderr)
    name = options.name or Path(options.run).resolve().name
    context = min(context, limits.n_blocks * limits.block_size)
    served = Served(name, tokenizer, template, context, drafts, find_grammars(tokenizer, model.config.vocab_size))
    metrics = Metrics()
    worker = Worker(engine, metrics, capacity=options.max_rows + options.queue)
    app = make_app(served, worker, metrics, GuardOptions(keys, options.body_kilobytes * 1024))
    megabytes = engine.runner.store.latent_LPTW.nbytes / 2**20
    told = f"{name}: context {context:,}, cache of {limits.n_blocks * limits.block_size:,} tokens ({megabytes:.0f} MB)"
    return app, f"{told}, {drafts} drafts a step, {'with' if keys else 'no'} API key"


def find_grammars(tokenizer: Any, vocab_size: int) -> Any:
    """Return what compiles structured output, or None where llguidance is not installed."""
    from deepseek_v3.engine.grammar import Grammars

    try:
        return Grammars(tokenizer.to_json(), vocab_size=vocab_size, end_token=tokenizer.eos_id)
    except ImportError:
        return None


def make_server(app: Any, options: ServeOptions, connection: Any = None) -> Any:
    """Return uvicorn's server, with our connections.

    Args:
        connection: the class of a connection, if it is to be another than `WatchedConnection`.
    """
    import uvicorn

    from deepseek_v3.serving.connection import WatchedConnection

    config = uvicorn.Config(
        app, http=connection or WatchedConnection, ws="none", loop="asyncio", lifespan="on", log_level="warning",
        access_log=False, server_header=False, proxy_headers=False, h11_max_incomplete_event_size=2**15,
        timeout_graceful_shutdown=options.drain_seconds,
    )  # fmt: skip
    return uvicorn.Server(config)
