"""What the server adds to a token: python -m benchmarks.streaming

One model by the engine in this process, and by `deepseek-v3 serve` in another, which streams to this one; they take
turns. Counted is the time between two tokens of a text, the first token apart, so the difference is what a client pays
for HTTP, JSON, text and the way between the threads. Prompts are tokens, greedy, nobody drafts. Beside busy neighbours
the processor time that a token costs in either process tells more: prompt and first token are in it for both.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from benchmarks.asking import read_values
from benchmarks.machine import interleave
from benchmarks.peers import nano
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.save import save_model

PROMPT, NEW, BATCHES, ROUNDS = 128, 256, (1, 8), 5
DOCS = Path(__file__).resolve().parent.parent / "docs"


def save_nano(folder: Path, model: DeepseekV3) -> Tokenizer:
    """Save the model that is timed, with a tokenizer of its size."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    tokenizer = Tokenizer.train([text], model.config.vocab_size)
    save_model(model, folder, tokenizer)
    return tokenizer


@contextmanager
def serve_folder(folder: Path, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run `deepseek-v3 serve` until the block is left; its port, and the process."""
    words = [sys.executable, "-m", "deepseek_v3", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("http://")), "")
            if not line:
                raise RuntimeError(f"deepseek-v3 serve ended with {process.wait()}")
            port = int(line.split("/")[2].rsplit(":", 1)[1])
            wait_until_ready(port)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def wait_until_ready(port: int, seconds: float = 60) -> None:
    """Wait for a server that has its door but does not open yet."""
    until = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().close()
        except ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def between_tokens_here(engine: Engine, prompts: list[list[int]], new: int) -> float:
    """Seconds between two tokens of a text, by the engine in this process: the median of its rows."""
    sequences = [engine.admit(Request(prompt, max_new_tokens=new)) for prompt in prompts]
    times: dict[int, list[float]] = {sequence.id: [] for sequence in sequences}
    while engine.sequences:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            times[event.sequence.id].append(now)
    return statistics.median((seen[-1] - seen[0]) / (new - 1) for seen in times.values())


def between_tokens_there(port: int, prompts: list[list[int]], new: int) -> float:
    """The same of texts that a server streams."""

    def read(prompt: list[int]) -> float:
        body = {
            "model": "served",
            "prompt": prompt,
            "max_tokens": new,
            "temperature": 0,
            "ignore_eos": True,
            "drafts": 0,
        }
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        data = json.dumps({**body, "drafts": 0, "stream": True})
        connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
        answer = connection.getresponse()
        times = [time.perf_counter() for line in answer if line.startswith(b"data: {")]
        connection.close()
        if len(times) != new:
            raise RuntimeError(f"{len(times)} events for {new} tokens, status {answer.status}")
        return (times[-1] - times[0]) / (new - 1)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return statistics.median(pool.map(read, prompts))


class Found(NamedTuple):
    """Of one way: seconds between two tokens of a text, and processor seconds a token; medians of the rounds."""

    wall: float
    work: float


def processor_time(process: psutil.Process) -> float:
    """Seconds that a process has had a processor for."""
    times = process.cpu_times()
    return times.user + times.system


def measure(
    engine: Engine, port: int, process: psutil.Process, prompts: list[list[int]], new: int, rounds: int
) -> dict[str, Found]:
    """Time the engine in this process ("here") and the server ("there"), in turns."""
    found: dict[str, list[tuple[float, float]]] = {"here": [], "there": []}

    def run(name: str, whose: psutil.Process, way: Callable[[], float]) -> None:
        before = processor_time(whose)
        wall = way()
        found[name].append((wall, (processor_time(whose) - before) / new / len(prompts)))

    ways = {
        "here": lambda: run("here", psutil.Process(), lambda: between_tokens_here(engine, prompts, new)),
        "there": lambda: run("there", process, lambda: between_tokens_there(port, prompts, new)),
    }
    interleave(ways, rounds, warm=1)
    return {name: Found(*map(statistics.median, zip(*times[1:]))) for name, times in found.items()}


def print_overhead(rounds: int = ROUNDS, batches: tuple[int, ...] = BATCHES, new: int = NEW) -> None:
    """Print tokens a second of both, and what the server adds to a token."""
    model = nano().eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "served"
        tokenizer = save_nano(folder, model)
        engine = Engine(model, EngineOptions(n_blocks=1024, fp8_drafts=False), stream=tokenizer.stream)
        with serve_folder(folder) as (port, process):
            for rows in batches:
                luck = torch.Generator().manual_seed(rows)
                prompts = torch.randint(300, model.config.vocab_size, (rows, PROMPT), generator=luck).tolist()
                here, there = measure(engine, port, process, prompts, new, rounds).values()
                rates = f"engine {rows / here.wall:7.0f} tokens/s, through HTTP {rows / there.wall:7.0f}"
                work = f"processor time a token {here.work * 1e3:.2f} and {there.work * 1e3:.2f} ms"
                print(f"  streamed, batch {rows}: {rates} ({(there.wall - here.wall) * 1e3:.2f} ms more); {work}")


def main() -> None:
    """Print the rows."""
    print(f"\nthe server around the engine, {torch.get_num_threads()} threads")
    print_overhead()


if __name__ == "__main__":
    read_values(__doc__)
    main()
