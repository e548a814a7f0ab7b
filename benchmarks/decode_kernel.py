"""What a cached token and a weight cost the decoding kernel: python -m benchmarks.decode_kernel

One thread, processor time, best of some rounds in turns, so that busy neighbours count little. First attention: the
time of a step behind a long cache less that behind a short one, by the tokens between them, in a model of one layer;
beside it the time that the products alone would take at PyTorch's FP32 rate. Then products: a step of a model that is
next to nothing but matrices, by how many rows share it, as GFLOP/s and as a share of the same rate.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.asking import read_values
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.decode_step import DecodeStep, Rows
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "n_routed_experts": None,
    "num_nextn_predict_layers": 0, "q_lora_rank": None, "rope_scaling": None, "max_position_embeddings": 65536,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
WIDE = {**SMALL, "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 2}
# Sizes, rows, cached tokens.
CASES = [("nano", 1, 4096), ("v2-lite-16b", 1, 4096), ("v2-lite-16b", 8, 4096), ("v2-lite-16b", 8, 16384)]
ROWS = (1, 2, 4, 8, 16, 32, 64, 65)


def best_times(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least processor time of each, in turns, after one call that does not count."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            if turn:
                best[name] = min(best[name], time.thread_time() - start)
    return best


def product_rate(size: int = 768) -> float:
    """PyTorch's FP32 products, FLOP/s of processor time."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / best_times({"": lambda: torch.mm(a, b)}, 9)[""]


def make_step(preset: str, dtype: torch.dtype, changes: dict) -> DecodeStep:
    """The step of a model with the attention of a preset."""
    torch.manual_seed(0)
    return DecodeStep(DeepseekV3(ModelConfig.preset(preset).replace(**changes)).to(dtype).eval())


def read_one(step: DecodeStep, rows: int, cached: int, room: int) -> Callable[[], object]:
    """Read one token of each row behind so many cached ones."""
    config = step.model.config
    cache = LatentCache.dense(config, rows, room, dtype=step.model.lm_head.weight.dtype)
    cache.store.latent_LPTW.normal_()

    def run() -> None:
        cache.lengths[:] = [cached] * rows
        step.read(Rows([7] * rows, [1] * rows), cache)

    return run


def print_attention(rate: float, rounds: int = 9) -> None:
    """Print microseconds a cached token of one layer."""
    for preset, rows, cached in CASES:
        for name, dtype in DTYPES.items():
            step = make_step(preset, dtype, SMALL)
            c = step.model.config
            ways = {"long": read_one(step, rows, cached, cached + 1), "short": read_one(step, rows, 64, cached + 1)}
            times = best_times(ways, rounds if cached < 10_000 else 2)
            cost = (times["long"] - times["short"]) / (cached - 64) / rows
            alone = 2 * c.num_attention_heads * (2 * c.kv_lora_rank + c.qk_rope_head_dim) / rate
            print(
                f"  {preset:<11} {name}, {rows} rows of {cached:6}: {cost * 1e6:.3f} us a cached token, "
                f"{alone / cost:4.0%} of the time in products"
            )


def print_products(rate: float, rounds: int = 9) -> None:
    """Print what the products of a step reach, by the rows that share it."""
    for name, dtype in DTYPES.items():
        step = make_step("nano", dtype, WIDE)
        weights = sum(p.numel() for p in step.model.parameters()) - step.model.embed_tokens.weight.numel()
        times = best_times({str(n): read_one(step, n, 1, 2) for n in ROWS}, rounds)
        for n in ROWS:
            reached = 2 * weights * n / times[str(n)]
            time_ms, share = times[str(n)] * 1e3, reached / rate
            print(f"  {name}, {n:2} rows: {time_ms:7.2f} ms {reached * 1e-9:6.1f} GFLOP/s {share:4.0%}")


def main() -> None:
    """Print both tables."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rate = product_rate()
    print(f"\nthe decoding kernel, one thread, processor time; PyTorch multiplies at {rate * 1e-9:.0f} GFLOP/s (fp32)")
    print_attention(rate)
    print_products(rate)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    read_values(__doc__)
    main()
