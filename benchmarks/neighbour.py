"""Decoding beside a busy process: python -m benchmarks.neighbour

One process spins on a core while `deepseek_v3.generate` writes from the `nano` model at batch 1, as a program of a user
would call it, with as many threads as PyTorch takes by itself. It is held against one thread on a quiet machine: a
package that leaves the busy core alone is not far from it, one whose threads wait for each other there is many times
slower. A process of its own, since how threads wait is chosen when the package is imported, before PyTorch is.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import deepseek_v3  # before PyTorch is imported, as its users do
from benchmarks.asking import read_values

PROMPT, TOKENS, ROUNDS = 128, 64, 7
AIM = 0.8  # of the speed of one quiet thread
SPIN = "import time\nend = time.monotonic() + {seconds}\nprint(flush=True)\nwhile time.monotonic() < end: pass"


@contextmanager
def busy_neighbour(seconds: float = 60) -> Iterator[subprocess.Popen]:
    """Let one process spin for the time of a block, and no longer than so many seconds in any case."""
    with subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=seconds)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it spins now
            yield process
        finally:
            process.kill()


def writer(model: object, tokens: int) -> Callable[[], float]:
    """Return what times a token: the first of them, with the prompt, apart."""
    import torch

    prompt = torch.randint(0, 64, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def write() -> float:
        stream = deepseek_v3.generate(model, prompt, max_new_tokens=1 + tokens, stop_tokens=())  # type: ignore[arg-type]
        next(stream)
        start = time.perf_counter()
        assert len(list(stream)) == tokens
        return (time.perf_counter() - start) / tokens

    return write


def measure(model: object, rounds: int = ROUNDS, tokens: int = TOKENS, settle_s: float = 0.5) -> dict[str, list[float]]:
    """Seconds a token, round by round: one quiet thread, all of them quiet, all of them beside a busy process."""
    import torch

    threads, write = torch.get_num_threads(), writer(model, tokens)
    times: dict[str, list[float]] = {"one quiet": [], "quiet": [], "beside": []}
    write()
    try:
        for _ in range(rounds):
            torch.set_num_threads(1)
            times["one quiet"].append(write())
            torch.set_num_threads(threads)
            times["quiet"].append(write())
            with busy_neighbour():
                time.sleep(settle_s)
                write()  # a running program has seen that the core is taken
                times["beside"].append(write())
    finally:
        torch.set_num_threads(threads)
    return times


def main() -> None:
    """Print the rows."""
    import torch

    from benchmarks.machine import median_ratio
    from benchmarks.peers import nano
    from deepseek_v3.native.threads import cores_in_use, describe_waiting, usable_cores

    busy = cores_in_use(0.5)
    print(f"\nbeside a busy process, {len(usable_cores())} cores, {busy:.1f} of them in use by others before")
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        times = measure(nano(dtype).eval())
        ms = {way: sorted(t)[len(t) // 2] * 1e3 for way, t in times.items()}
        print(
            f"  {name}, batch 1, {torch.get_num_threads()} threads: {ms['beside']:.2f} ms a token beside it, one quiet "
            f"thread {ms['one quiet']:.2f}, all quiet {ms['quiet']:.2f}: "
            f"{median_ratio(times, 'one quiet', 'beside'):.2f} x one quiet thread (aim {AIM})"
        )
    print(f"  threads wait by {describe_waiting()}")


if __name__ == "__main__":
    read_values(__doc__)
    main()
