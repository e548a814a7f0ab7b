"""The server under load: python -m benchmarks.load

`nano` with random weights behind `deepseek-v3 serve --queue 16`, asked for short greedy texts. Ten times what may run
and wait comes at once: how many are served and refused, and how long both wait. Clients leave in the middle of a text:
how long until their places and blocks are free. It is told to stop while it writes: how long until the text has ended
and the process is gone. That the limits hold, `tests/serving/test_load.py` asserts; here are the times.
"""

import http.client
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.asking import read_values
from benchmarks.peers import nano
from benchmarks.streaming import save_nano, serve_folder

QUEUE, TIMES, NEW, GONE = 16, 10, 16, 20


class Answered(NamedTuple):
    """A request of a burst: its status, and the seconds from the beginning of the burst to the end of its answer."""

    status: int
    seconds: float


def ask(port: int, new: int, *, stream: bool = False) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Ask for a text; return once it is answered, or the stream has begun."""
    body = {"model": "served", "prompt": [5, 7, 11], "max_tokens": new, "temperature": 0}
    data = json.dumps({**body, "ignore_eos": True, "drafts": 0, "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
    return connection, connection.getresponse()


def look(port: int) -> dict:
    """What the server says of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/live")
    state = json.load(connection.getresponse())
    connection.close()
    return state


def burst(port: int, count: int, new: int) -> list[Answered]:
    """So many clients at once, each with a connection of its own."""
    together = threading.Barrier(count)

    def one() -> Answered:
        together.wait()
        start = time.perf_counter()
        connection, answer = ask(port, new)
        answer.read()
        connection.close()
        return Answered(answer.status, time.perf_counter() - start)

    with ThreadPoolExecutor(count) as pool:
        return [asked.result() for asked in [pool.submit(one) for _ in range(count)]]


def leave(port: int, new: int) -> float:
    """Go away behind the first token of a text; seconds until nothing is held."""
    connection, answer = ask(port, new, stream=True)
    answer.readline()
    answer.close()
    connection.close()
    start = time.perf_counter()
    while True:
        state = look(port)
        if not state["load"] and state["blocks_free"] == state["blocks"]:
            return time.perf_counter() - start
        time.sleep(0.001)


def print_load(new: int = NEW, gone: int = GONE) -> None:
    """Print the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "served"
        save_nano(folder, nano().eval())
        with serve_folder(folder, "--queue", str(QUEUE)) as (port, process):
            capacity = look(port)["capacity"]
            answers = burst(port, TIMES * capacity, new)
            served = [answer.seconds for answer in answers if answer.status == 200]
            refused = [answer.seconds for answer in answers if answer.status == 429]
            print(f"  {len(answers)} at once, {capacity} may run and wait, {new} tokens each:")
            for what, seconds in (("served", served), ("refused", refused)):
                told = f"half of them within {statistics.median(seconds):.2f} s, all within {max(seconds):.2f}"
                print(f"    {len(seconds)} {what}, {told}")
            seconds = [leave(port, 1000) for _ in range(gone)]
            told = f"{statistics.median(seconds) * 1e3:.0f} ms, at most {max(seconds) * 1e3:.0f}"
            print(f"  a client that goes away in the middle of a text: its blocks are free after {told}")
            connection, answer = ask(port, 64, stream=True)
            answer.readline()
            start = time.perf_counter()
            process.terminate()
            whole = answer.read().rstrip().endswith(b"[DONE]")
            end = time.perf_counter()
            connection.close()
            process.wait(60)
            after = f"{end - start:.2f} s later, the process is gone {time.perf_counter() - end:.2f} s after that"
            print(f"  told to stop while it writes: the text is {'whole' if whole else 'CUT'} {after}")


def main() -> None:
    """Print the rows."""
    print(f"\nthe server under load, {torch.get_num_threads()} threads")
    print_load()


if __name__ == "__main__":
    read_values(__doc__)
    main()
