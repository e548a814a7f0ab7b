"""This checkout against another one, in turns: python -m benchmarks.against OTHER_CHECKOUT

    git worktree add ../before 6fed670
    python -m benchmarks.against ../before                 every job
    python -m benchmarks.against ../before decode load     only those whose name contains one of the words

Each side is a process of its own that has imported its own package; the two take turns, A B B A ..., so that a busy
moment of the machine meets both. Before its turn a side waits until the other's threads have ceased to spin, and a
short job is timed after WARM_S of itself: how it runs in the middle of a longer one is the question. A ratio is the
median over the rounds of their time / our time: 0.97 means that we take three per cent longer. The jobs use the `nano`
model with the same random weights, and a checkpoint of 0.7 billion parameters for loading (that of
benchmarks/loading.py).
"""

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).resolve().parent.parent
ROWS, LENGTH, PROMPT, CACHED, STEPS = 8, 512, 2048, 128, 16
BATCHES = (1, 8, 64)
SETTLE_S, WARM_S, SHORT_S = 0.1, 0.3, 0.5
JOBS = [
    *(f"{job} {form}" for job in ("training", "prefill") for form in ("fp32", "bf16")),
    *(f"decode {form}, batch {batch}" for form in ("fp32", "bf16") for batch in BATCHES),
    "load BF16",
    "load FP8",
]


# -- in the process of one side: only names that both checkouts have, or either


def make_model(form: str):
    """The seeded `nano` model."""
    import torch

    from deepseek_v3 import DeepseekV3, ModelConfig

    torch.manual_seed(0)
    model = DeepseekV3(ModelConfig.preset("nano"))
    if hasattr(model, "initialize_weights"):
        model.initialize_weights()
    return model.to(torch.bfloat16 if form == "bf16" else torch.float32)


def make_cache(config, batch: int, capacity: int, dtype):
    """A dense cache."""
    from deepseek_v3 import LatentCache

    make = getattr(LatentCache, "dense", LatentCache)
    return make(config, batch, capacity, dtype=dtype)


def training_job(form: str) -> Callable[[], object]:
    """Forward, loss of the main head, and backward; bf16 is autocast."""
    import torch
    from torch.nn import functional as F

    model = make_model("fp32")
    tokens_BS = torch.randint(0, 4096, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels_BS = F.pad(tokens_BS[:, 1:], (0, 1), value=-100)

    def sum_nats(hidden_BSD):
        if hasattr(model.lm_head, "sum_nats"):
            return model.lm_head.sum_nats(hidden_BSD, labels_BS)
        from deepseek_v3.training.loss import sum_nats

        return sum_nats(hidden_BSD, model.lm_head.weight, labels_BS)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=form == "bf16"):
            loss = sum_nats(model.hidden_states(tokens_BS)) / labels_BS.numel()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def prefill_job(form: str) -> Callable[[], object]:
    """A long prompt into an empty cache, the logits of its last token."""
    import torch

    model = make_model(form).eval()
    tokens_BS = torch.randint(0, 4096, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run() -> None:
        cache = make_cache(model.config, 1, PROMPT, model.lm_head.weight.dtype)
        hidden_BSD = model.hidden_states(tokens_BS, cache=cache)
        model.lm_head(hidden_BSD[:, -1:])

    return run


def decode_job(form: str, batch: int) -> Callable[[], object]:
    """Greedy steps behind a short prompt."""
    import torch

    try:
        from deepseek_v3.engine import decode_step as home
    except ImportError:
        from deepseek_v3.serving import decode_step as home

    model = make_model(form).eval()
    step, dtype = home.DecodeStep(model), model.lm_head.weight.dtype
    prompt_BS = torch.randint(0, 4096, (batch, CACHED), generator=torch.Generator().manual_seed(0))
    cache = make_cache(model.config, batch, CACHED + STEPS, dtype)
    with torch.inference_mode():
        model.hidden_states(prompt_BS, cache=cache)

    @torch.inference_mode()
    def run() -> None:
        cache.truncate([CACHED] * batch)
        tokens_BS = prompt_BS[:, -1:]
        for _ in range(STEPS):
            if hasattr(step, "read"):
                _, logits_NV = step.read(home.Rows(tokens_BS.flatten().tolist(), [1] * batch), cache)
                tokens_BS = logits_NV.view(batch, 1, -1).argmax(-1)
            else:
                tokens_BS = step(tokens_BS, cache)[1].argmax(-1)

    return run


def load_job(folder: Path) -> Callable[[], object]:
    """A verified load; FP8 is kept."""
    from deepseek_v3 import load

    return lambda: load(folder, keep_fp8=folder.name == "FP8")


def make_job(name: str, scratch: Path) -> Callable[[], object]:
    """Build a job by its name."""
    job, _, rest = name.partition(" ")
    form, _, batch = rest.partition(", batch ")
    if job == "load":
        return load_job(scratch / form)
    if job == "decode":
        return decode_job(form, int(batch))
    return {"training": training_job, "prefill": prefill_job}[job](form)


def serve(scratch: Path) -> None:
    """Build and time what standard input names, and answer on standard output."""
    said, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import deepseek_v3  # noqa: F401

    answer(answers, os.environ.get("GOMP_SPINCOUNT", os.environ.get("OMP_WAIT_POLICY", "as OpenMP has it")))
    name, run = "", lambda: None
    while True:
        try:
            asked = pickle.load(said)
        except EOFError:
            return
        if asked != name:
            name, run = asked, lambda: None  # the last job's memory first
            run = make_job(name, scratch)
            run()
        time.sleep(SETTLE_S)
        begun = time.perf_counter()
        taken = _time(run)
        while taken < SHORT_S and time.perf_counter() - begun < WARM_S:
            taken = _time(run)
        answer(answers, taken)


def answer(stream: BinaryIO, what: object) -> None:
    """Say something to the process that compares."""
    pickle.dump(what, stream)
    stream.flush()


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# -- in the process that compares


class Side:
    """One checkout, in a process that serves.

    Attributes:
        waits: how long its threads spin before they sleep.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        tunables = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"  # freed memory kept
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "GLIBC_TUNABLES": tunables}
        command = [sys.executable, __file__, "--serve", str(scratch)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, cwd=scratch)
        assert self.process.stdout
        self.waits = pickle.load(self.process.stdout)  # only then may the other side start: see `native/threads.py`

    def time(self, name: str) -> float:
        """Seconds of one run of a job."""
        assert self.process.stdin
        assert self.process.stdout
        pickle.dump(name, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)


def compare(name: str, ours: Side, theirs: Side, rounds: int) -> str:
    """Time a job on both sides in turns; a line of the table."""
    times: dict[Side, list[float]] = {ours: [], theirs: []}
    for i in range(rounds + 1):
        for side in (ours, theirs) if i % 2 else (theirs, ours):
            taken = side.time(name)
            if i:  # the first round warms up
                times[side].append(taken)
    ratio = statistics.median(b / a for a, b in zip(times[ours], times[theirs]))
    a, b = (statistics.median(t) * 1e3 for t in times.values())
    return f"  {name:<24} ours {a:9.2f} ms   theirs {b:9.2f} ms   theirs / ours {ratio:5.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("words", nargs="*", help="only jobs whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    jobs = [job for job in JOBS if not asked.words or any(word in job for word in asked.words)]
    if not (asked.other / "src" / "deepseek_v3").is_dir():
        parser.error(f"{asked.other} is no checkout of this project: it has no src/deepseek_v3")
    with tempfile.TemporaryDirectory() as scratch:
        if any(job.startswith("load") for job in jobs):
            from benchmarks.loading import write_checkpoint

            for form in ("BF16", "FP8"):
                write_checkpoint(Path(scratch) / form, fp8=form == "FP8")
        ours, theirs = Side(HERE, Path(scratch)), Side(asked.other.resolve(), Path(scratch))
        print(f"this checkout against {asked.other}, {asked.rounds} rounds in turns", flush=True)
        print(f"  threads that wait: ours {ours.waits}, theirs {theirs.waits}", flush=True)
        for job in jobs:
            print(compare(job, ours, theirs, asked.rounds), flush=True)
        for side in (ours, theirs):
            side.process.kill()
            side.process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.path = [p for p in sys.path if p not in (str(HERE), str(Path(__file__).parent))]
        serve(Path(sys.argv[2]))
    else:
        main()
