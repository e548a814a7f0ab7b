"""Where the time goes: python -m benchmarks.profile, or `make profile`

One training step (8 rows of 512 tokens of `nano`: forward, loss, backward) and one token of decoding (batch 1, behind a
prompt of 128), each as a table of what took the most of its time, and below it what bounds it: the time that its matrix
products would take at this machine's rate, and its weights and cache at the memory's.

Times are those of the thread that calls, through torch.profiler; a kernel of ours, which PyTorch does not see, stands
under its own name. The profiler costs some microseconds a call, so shares of very short calls are a little too large.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.asking import read_values
from benchmarks.decode import PROMPT, bytes_per_step
from benchmarks.machine import has_fast_bf16, product_rates, read_bandwidth, seconds
from benchmarks.peers import nano
from benchmarks.training import LENGTH, ROWS, our_loss, training_step
from deepseek_v3 import generate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.sizing import decoding_flops, training_flops

TOP, TOKENS = 12, 64


class Line(NamedTuple):
    """One row of a table: an operation, its calls per run, its own milliseconds and its share of all."""

    name: str
    calls: float
    ms: float
    share: float


@contextmanager
def named_kernels() -> Iterator[None]:
    """Let every kernel of ours appear under its name, in the modules that are imported by now."""
    from deepseek_v3.native import build

    plain = build.run_kernel

    def recorded(name: str, *arguments) -> None:
        with record_function(f"kernel {name}"):
            plain(name, *arguments)

    modules = [module for name, module in sys.modules.items() if name.startswith("deepseek_v3.")]
    callers: list[Any] = [module for module in modules if getattr(module, "run_kernel", None) is plain]
    try:
        for module in callers:
            module.run_kernel = recorded
        yield
    finally:
        for module in callers:
            module.run_kernel = plain


def measure_operations(run: Callable[[], object], times: int) -> list[Line]:
    """Run a few times under the profiler; what each operation took itself, without those it called, per run."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(times):
            run()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        Line(
            event.key, event.count / times, event.self_cpu_time_total / times / 1000, event.self_cpu_time_total / whole
        )
        for event in events
    ]


def print_table(title: str, lines: list[Line], step_ms: float, bounds: dict[str, float]) -> None:
    """Print what took the most, and how long the step would take if one thing alone bounded it."""
    print(f"\n{title}: {step_ms:.2f} ms\n\n  {'operation':<52}{'calls':>7}{'ms':>10}{'share':>8}")
    for line in lines[:TOP]:
        print(f"  {line.name[:50]:<52}{line.calls:>7.4g}{line.ms:>10.3f}{line.share:>8.1%}")
    print(f"  {'everything else':<67}{sum(line.share for line in lines[TOP:]):>10.1%}\n")
    for name, bound_ms in bounds.items():
        print(f"  {name}: {bound_ms:.2f} ms, {bound_ms / step_ms:.0%} of the step")


def profile_training(name: str, rate: float, *, autocast: bool) -> None:
    """Profile a training step of `nano`."""
    model, tokens = nano(), torch.randint(0, 4096, (ROWS, LENGTH))
    step = training_step(model, our_loss, tokens, autocast=autocast)
    lines = measure_operations(step, 3)
    step_ms = 1000 * statistics.median(seconds(step) for _ in range(3))
    products_ms = 1000 * training_flops(model.config, LENGTH) * ROWS * LENGTH / rate
    print_table(f"training step, {name}", lines, step_ms, {"products at the machine's rate": products_ms})


def profile_decoding(name: str, model: DeepseekV3, dtype: torch.dtype, rate: float, bandwidth: float) -> None:
    """Profile the writing of tokens, one at a time."""
    prompt = torch.randint(0, 4096, (1, PROMPT))

    def write() -> None:
        list(generate(model, prompt, max_new_tokens=TOKENS, stop_tokens=(), temperature=0))

    lines = [line._replace(calls=line.calls / TOKENS, ms=line.ms / TOKENS) for line in measure_operations(write, 2)]
    step_ms = 1000 * statistics.median(seconds(write) for _ in range(5)) / TOKENS
    bounds = {
        "weights and cache at the memory's rate": 1000 * bytes_per_step(model.config, 1, dtype) / bandwidth,
        "products at the machine's rate": 1000 * decoding_flops(model.config, PROMPT) / rate,
    }
    print_table(f"a decoded token, {name} (its share of the prompt's reading included)", lines, step_ms, bounds)


def main() -> None:
    """Print the tables."""
    torch.manual_seed(0)
    bf16 = has_fast_bf16()
    rates, bandwidth = product_rates(bf16), read_bandwidth()
    gflops = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    print(f"{torch.get_num_threads()} threads; matrix products {gflops}; memory {bandwidth / 1e9:.1f} GB/s")
    list(generate(nano().eval(), [1, 2], max_new_tokens=1))  # every module that calls kernels is imported now
    with named_kernels():
        profile_training("fp32", rates["fp32"], autocast=False)
        profile_training("bf16 under autocast", rates["bf16"], autocast=True)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            profile_decoding(name, nano(dtype).eval(), dtype, rates[name], bandwidth)


if __name__ == "__main__":
    read_values(__doc__)
    main()
