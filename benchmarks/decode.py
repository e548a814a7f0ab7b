"""Decoding against transformers: python -m benchmarks.decode

Each timing is 16 steps of one token a row, behind a prompt of 128 tokens, on the `nano` model with random weights; the
contenders take turns, and a ratio is the median over the rounds. Every eager setting of
the peer is timed and the fastest one counts. Ours is the decoding step of `deepseek_v3.generate`, and beside it the
model's own forward pass.

What bounds a step is shown by two figures beside it: the share of the memory bandwidth (bytes of weights and cache that
a step must read, by time, by the bandwidth measured in this run; more than all of it means that weights stay in the
processor's cache from step to step), and the time of a step on a model so narrow that there is next to nothing to read:
what remains then is the call, and the threads' waiting for each other.

Then the same through `generate`, beside a process that keeps one core busy (benchmarks/neighbour.py).

Last, FP8 weights: a checkpoint of 0.7 billion parameters (that of benchmarks/loading.py, larger than any processor's
cache), kept in FP8 and decoded to BF16 when it was loaded.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.asking import read_values
from benchmarks.loading import write_checkpoint
from benchmarks.machine import interleave, median_ratio, read_bandwidth
from benchmarks.peers import Setting, make_peer, nano
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.decode_step import DecodeStep
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.sizing import count_parameters
from deepseek_v3.weights.load import load_model

PROMPT, STEPS = 128, 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = [
    Setting("sdpa", "batched_mm"),
    Setting("sdpa", "grouped_mm"),
    Setting("sdpa", "eager"),
    Setting("eager", "batched_mm"),
]
NARROW = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "vocab_size": 64,
}  # fmt: skip
LABELS = {"ours": "our step", "model": "our model's forward"}


@dataclass(frozen=True)
class Row:
    """One contender: milliseconds a step, its speed over the fastest peer's, and its share of the bandwidth."""

    dtype: str
    batch: int
    name: str
    step_ms: float
    tokens_per_second: float
    ratio: float
    bandwidth_share: float


def bytes_per_step(config: ModelConfig, batch: int, dtype: torch.dtype) -> float:
    """Weights and cache that one step of `batch` rows must read: each expert once, if any row chose it."""
    count, size = count_parameters(config), torch.finfo(dtype).bits // 8
    experts = config.n_routed_experts or 0
    layers = sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers))
    one = 3 * config.hidden_size * config.moe_intermediate_size
    distinct = experts * (1 - (1 - config.num_experts_per_tok / experts) ** batch) if experts else 0
    weights = count.active - count.embedding + layers * one * (distinct - config.num_experts_per_tok)
    slots = PROMPT + STEPS / 2
    return size * (weights + batch * slots * config.cache_width * config.num_hidden_layers)


def our_steps(model: DeepseekV3, batch: int, step: Callable) -> Callable[[], None]:
    """Sixteen greedy steps, from the same cache each time."""
    prompt = torch.randint(0, model.config.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    cache = LatentCache.dense(model.config, batch, PROMPT + STEPS, dtype=model.lm_head.weight.dtype)
    with torch.inference_mode():
        model(prompt, cache=cache)

    @torch.inference_mode()
    def run() -> None:
        cache.truncate([PROMPT] * batch)
        tokens_BS = prompt[:, -1:]
        for _ in range(STEPS):
            tokens_BS = step(tokens_BS, cache)[:, -1:].argmax(-1)

    return run


def peer_steps(peer, batch: int) -> Callable[[], None]:
    """The same, by transformers with its dynamic cache (the static one is for compiling, and slower here)."""
    from transformers import DynamicCache

    prompt = torch.randint(0, peer.config.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=peer.config)
    with torch.inference_mode():
        peer(prompt, past_key_values=cache, use_cache=True)

    @torch.inference_mode()
    def run() -> None:
        if extra := cache.get_seq_length() - PROMPT:
            cache.crop(-extra)
        tokens_BS = prompt[:, -1:]
        for _ in range(STEPS):
            tokens_BS = peer(tokens_BS, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return run


def contenders(dtype: torch.dtype, batch: int) -> dict[str, Callable[[], None]]:
    """Ours and the peer's, in every setting that could be the fastest."""
    model = nano(dtype).eval()
    step = DecodeStep(model)
    found = {
        "ours": our_steps(model, batch, lambda tokens, cache: step(tokens, cache)[1]),
        "model": our_steps(model, batch, lambda tokens, cache: model(tokens, cache=cache)),
    }
    for setting in SETTINGS:
        found[f"peer {setting}"] = peer_steps(make_peer(nano(), dtype, setting).eval(), batch)
    return found


def measure(rounds: int = 9, *, batches: tuple[int, ...] = (1, 8)) -> list[Row]:
    """Time every contender at each dtype and batch, interleaved."""
    rows, bandwidth = [], read_bandwidth()
    for name, dtype in DTYPES.items():
        for batch in batches:
            times = interleave(contenders(dtype, batch), rounds, warm=1)
            middle = {n: sorted(t)[len(t) // 2] / STEPS for n, t in times.items()}
            best = min((n for n in middle if n.startswith("peer")), key=middle.__getitem__)
            needed = bytes_per_step(nano().config, batch, dtype)
            for contender, seconds in middle.items():
                ratio = median_ratio(times, best, contender)
                share = needed / seconds / bandwidth
                rows.append(Row(name, batch, contender, seconds * 1e3, batch / seconds, ratio, share))
    return rows


def calls_alone(batch: int, rounds: int = 9) -> float:
    """Milliseconds of a step whose matrices are next to empty: what call and waiting themselves cost."""
    model = nano(**NARROW).eval()
    step = DecodeStep(model)
    times = interleave({"ours": our_steps(model, batch, lambda tokens, cache: step(tokens, cache)[1])}, rounds)
    return min(times["ours"]) / STEPS * 1e3


def print_prompts(rounds: int = 9, *, lengths: tuple[int, ...] = (8, 32, 64)) -> None:
    """Print how much faster the step's kernel reads a short prompt than the model's forward pass."""
    print("  a short prompt, by the step and by the model's forward pass")
    for name, dtype in DTYPES.items():
        model = nano(dtype).eval()
        step = DecodeStep(model)

        def read(way: Callable, length: int, model=model) -> Callable[[], None]:
            prompt = torch.randint(0, model.config.vocab_size, (1, length))

            @torch.inference_mode()
            def run() -> None:
                way(prompt, LatentCache.dense(model.config, 1, length, dtype=model.lm_head.weight.dtype))

            return run

        def forward(tokens_BS: torch.Tensor, cache: LatentCache, model=model) -> None:
            model.hidden_states(tokens_BS, cache=cache)

        for length in lengths:
            times = interleave({"step": read(step, length), "model": read(forward, length)}, rounds, warm=1)
            ours, theirs = (sorted(t)[len(t) // 2] * 1e3 for t in times.values())
            ratio = median_ratio(times, "model", "step")
            print(f"    {name}, {length:2} tokens: {ours:5.1f} ms and {theirs:5.1f} ms: {ratio:.2f} x")


def print_fp8(rounds: int = 9, *, batches: tuple[int, ...] = (1, 2, 4, 8)) -> None:
    """Print how much faster a step is if it reads FP8."""
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch) / "fp8", fp8=True)
        models = {name: load_model(Path(scratch) / "fp8", keep_fp8=name == "FP8")[0] for name in ("BF16", "FP8")}
    print("  weights kept in FP8, 0.7 billion parameters, our step")
    for batch in batches:
        ways = {}
        for name, model in models.items():
            step = DecodeStep(model)
            ways[name] = our_steps(model, batch, lambda tokens, cache, step=step: step(tokens, cache)[1])
        times = interleave(ways, rounds, warm=1)
        bf16, fp8 = (sorted(t)[len(t) // 2] / STEPS * 1e3 for t in times.values())
        ratio = median_ratio(times, "BF16", "FP8")
        print(f"    batch {batch}: BF16 {bf16:6.2f} ms, FP8 {fp8:6.2f} ms: {ratio:.2f} x")


def main(rounds: int = 9) -> None:
    """Print the rows, and what bounds a step."""
    rows = measure(rounds)
    print(f"\ndecoding, {PROMPT} tokens cached, {torch.get_num_threads()} threads")
    for dtype in DTYPES:
        for batch in sorted({row.batch for row in rows}):
            print(f"  {dtype}, batch {batch}")
            for row in rows:
                if (row.dtype, row.batch) == (dtype, batch):
                    print(
                        f"    {LABELS.get(row.name, row.name):<24} {row.step_ms:7.2f} ms {row.tokens_per_second:8.0f} "
                        f"tokens/s {row.ratio:6.2f} x the fastest peer {row.bandwidth_share:6.1%} of the bandwidth"
                    )
    alone = calls_alone(1)
    print(f"  a step on next to no data, batch 1: {alone:.3f} ms")
    form = "the C++ kernel" if DecodeStep(nano()).native.ready else "the model (no compiler, or switched off)"
    print(f"  our step is {form}; bound by reading the weights: see the share of the bandwidth")
    print_prompts(rounds)
    subprocess.run([sys.executable, "-m", "benchmarks.neighbour"], check=True)
    print_fp8(rounds)


if __name__ == "__main__":
    read_values(__doc__)
    main()
