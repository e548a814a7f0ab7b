"""Training and prefill against transformers: python -m benchmarks.training

One step is forward, cross-entropy and backward on 8 rows of 512 tokens of the `nano` model without MTP modules (the
peer trains none). Prefill is 2,048 tokens into an empty cache, the logits of the last token only. Every setting of the
peer that could be the fastest is tried, for training torch.compile among them, and the fastest one counts; that one and
ours are then timed in turns, in a process of their own: beside a dozen other models in one heap the peer's step took a
third longer.

Three formats: `fp32`; `auto`, bf16 products over fp32 weights (autocast); `bf16`, the weights themselves in bf16, which
a recipe for training rarely is. Where PyTorch has no instructions for bf16, a step of the peer in it takes minutes, and
only ours is timed. Prefill is timed twice: with the C library as it comes, and told to keep freed memory.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch.nn import functional as F

from benchmarks.asking import read_values
from benchmarks.machine import has_fast_bf16, interleave, median_ratio, product_rates
from benchmarks.peers import Setting, make_peer, nano, tell_compiling
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.heap import keep_freed_memory
from deepseek_v3.sizing import attention_flops, count_parameters, training_flops
from deepseek_v3.training.loss import IGNORED

ROWS, LENGTH, PROMPT = 8, 512, 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = {"fp32": "fp32", "auto": "bf16", "bf16": "bf16"}  # the format in which each multiplies
SETTINGS = [
    *(Setting(attention, experts) for attention in ("sdpa", "eager") for experts in ("grouped_mm", "eager")),
    Setting("sdpa", "grouped_mm", compiled=True),
]


def training_step(
    model: torch.nn.Module, compute_loss: Callable, tokens: torch.Tensor, *, autocast: bool = False
) -> Callable:
    """One forward and backward, each side with the loss that it trains with; the gradients are dropped."""
    labels_BS = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = compute_loss(model, tokens, labels_BS)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def our_loss(model: DeepseekV3, tokens: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """As our trainer computes it: head and cross-entropy in one."""
    return model.lm_head.sum_nats(model.hidden_states(tokens), labels_BS) / (labels_BS != IGNORED).sum()


def peer_loss(peer: torch.nn.Module, tokens: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """As transformers computes it: cross-entropy of FP32 logits."""
    logits_NV = peer(tokens, use_cache=False).logits.flatten(0, 1).float()
    return F.cross_entropy(logits_NV, labels_BS.flatten(), ignore_index=IGNORED)


def peer_settings(name: str, bf16: bool) -> list[Setting]:
    """The settings in which the peer's step in this format is timed."""
    return SETTINGS if name == "fp32" or bf16 else []


def training_contenders(bf16: bool) -> dict[str, Callable]:
    """Ours and the peer's training steps, in every setting that could be the fastest."""
    tokens = torch.randint(0, 4096, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    contenders = {}
    for name in PRODUCTS:
        dtype, autocast = DTYPES["bf16" if name == "bf16" else "fp32"], name == "auto"
        model = nano(dtype)
        contenders[f"ours {name}"] = training_step(model, our_loss, tokens, autocast=autocast)
        for setting in peer_settings(name, bf16):
            peer, title = make_peer(nano(), dtype, setting), f"peer {name} {setting}"
            step = training_step(peer, peer_loss, tokens, autocast=autocast)
            contenders[title] = tell_compiling(title, step) if setting.compiled else step
    return contenders


def prefill_contenders(bf16: bool) -> dict[str, Callable]:
    """Ours and the peer's prefill of a long prompt."""
    tokens = torch.randint(0, 4096, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    contenders = {}
    for name, dtype in DTYPES.items():
        model = nano(dtype).eval()

        @torch.inference_mode()
        def ours(model=model, dtype=dtype) -> None:
            cache = LatentCache.dense(model.config, 1, PROMPT, dtype=dtype)
            model.lm_head(model.hidden_states(tokens, cache=cache)[:, -1:])

        contenders[f"ours {name}"] = ours
        for setting in (s for s in peer_settings(name, bf16) if not s.compiled):
            peer = make_peer(nano(), dtype, setting).eval()

            @torch.inference_mode()
            def theirs(peer=peer) -> None:
                peer(tokens, use_cache=True, logits_to_keep=1)

            contenders[f"peer {name} {setting}"] = theirs
    return contenders


def time_contenders(
    job: str, keep_memory: bool, names: list[str] | None, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """In a process of its own: the seconds of each contender, and the matrix-product rate of each format."""
    if keep_memory:
        keep_freed_memory()
    bf16 = has_fast_bf16()
    contenders = {"prefill": prefill_contenders, "training": training_contenders}[job](bf16)
    contenders = {name: contenders[name] for name in names or contenders}
    peaks = product_rates(bf16)
    return interleave(contenders, rounds, warm=1), peaks


def apart(function: Callable, *arguments):
    """Call in a new process: what another contender left in the heap would slow the next one down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(title: str, job: str, keep_memory: bool, flops: float, rounds: int) -> None:
    """Find the peer's fastest setting of each format, time it against ours, print ratios and what bounds them."""
    print(f"\n{title}")
    tried, _ = apart(time_contenders, job, keep_memory, None, 3)
    best = {name: min(seconds) for name, seconds in tried.items()}
    for name in (n for n in best if n.startswith("peer")):
        print(f"  tried: {name:<36} {best[name] * 1e3:8.1f} ms at best")
    ours = [name for name in best if name.startswith("ours")]
    peers = {n: min(same, key=best.get) for n in ours if (same := [p for p in best if p.startswith(f"peer {n[5:]} ")])}
    times, peaks = apart(time_contenders, job, keep_memory, [*ours, *peers.values()], rounds)
    middle = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    for name, seconds in middle.items():
        product = PRODUCTS[name.split()[1]]
        share = flops / seconds / peaks[product]
        print(f"  {name:<36} {seconds * 1e3:8.1f} ms   {share:5.1%} of the {product} matrix-product rate")
    for name, peer in peers.items():
        form, ratio = name.split()[1], median_ratio(times, peer, name)
        bound = flops / peaks[PRODUCTS[form]]
        print(f"  {form}: {ratio:.2f} x the speed of {peer}; {middle[peer] / bound:.2f} x is where products bound it:")
        print(
            f"        at the full {PRODUCTS[form]} rate they take {bound * 1e3:.0f} of our {middle[name] * 1e3:.0f} ms"
        )
    fastest, slowest = (min(side, key=middle.__getitem__) for side in (ours, peers.values()))
    print(f"  each at its best: {median_ratio(times, slowest, fastest):.2f} x ({fastest} against {slowest})")


def main(rounds: int = 7) -> None:
    """Print the comparisons."""
    config = nano().config
    count = count_parameters(config)
    print(f"threads {torch.get_num_threads()}; nano: {count.main:,} parameters")
    weights = count.active - 2 * count.embedding  # one row of logits only
    flops = PROMPT * (2 * weights + attention_flops(config, PROMPT / 2))
    title = f"prefill, {PROMPT} tokens"
    report(f"{title}, memory as the C library handles it", "prefill", False, flops, rounds)
    report(f"{title}, freed memory kept", "prefill", True, flops, rounds)
    flops = training_flops(config, LENGTH) * ROWS * LENGTH
    report(f"training, {ROWS} x {LENGTH} tokens, freed memory kept", "training", True, flops, rounds)


if __name__ == "__main__":
    read_values(__doc__)
    main()
