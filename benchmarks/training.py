"""Training and prefill against transformers: python -m benchmarks.training

One step is forward, cross-entropy and backward on 8 rows of 512 tokens of the `nano` model without MTP modules (the
peer trains none). Prefill is 2,048 tokens into an empty cache, the logits of the last token only. Every setting of the
peer is timed and the fastest one counts.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.machine import interleave, matmul_rate, median_ratio
from benchmarks.peers import make_peer, nano
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.sizing import attention_flops, count_parameters, training_flops

ROWS, LENGTH, PROMPT = 8, 512, 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = [("sdpa", "grouped_mm"), ("sdpa", "eager"), ("eager", "grouped_mm"), ("eager", "eager")]


def training_step(
    model: torch.nn.Module, forward: Callable, tokens: torch.Tensor, *, autocast: bool = False
) -> Callable:
    """One forward and backward; the gradients are dropped, as an optimizer would."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = forward(tokens)
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        model.zero_grad(set_to_none=True)

    return run


def training_contenders() -> dict[str, Callable]:
    """Ours and the peer's training steps, in every setting that could be the fastest."""
    tokens = torch.randint(0, 4096, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    model = nano()
    contenders = {
        "ours fp32": training_step(model, model, tokens),
        "ours bf16": training_step(model, model, tokens, autocast=True),
    }
    for attention, experts in SETTINGS:
        peer = make_peer(nano(), torch.float32, attention=attention, experts=experts)
        contenders[f"peer fp32 {attention}+{experts}"] = training_step(peer, _peer_forward(peer), tokens)
    for attention, experts in SETTINGS[:2]:
        peer = make_peer(nano(), torch.float32, attention=attention, experts=experts)
        contenders[f"peer bf16 {attention}+{experts}"] = training_step(peer, _peer_forward(peer), tokens, autocast=True)
    return contenders


def _peer_forward(peer) -> Callable:
    return lambda tokens: peer(tokens, use_cache=False).logits


def prefill_contenders() -> dict[str, Callable]:
    """Ours and the peer's prefill of a long prompt."""
    tokens = torch.randint(0, 4096, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    contenders = {}
    for name, dtype in DTYPES.items():
        model = nano(dtype).eval()

        @torch.inference_mode()
        def ours(model=model, dtype=dtype) -> None:
            cache = LatentCache(model.config, 1, PROMPT, dtype=dtype)
            model.lm_head(model.hidden_states(tokens, cache=cache)[:, -1:])

        contenders[f"ours {name}"] = ours
        for attention, experts in SETTINGS:
            peer = make_peer(nano(), dtype, attention=attention, experts=experts).eval()

            @torch.inference_mode()
            def theirs(peer=peer) -> None:
                peer(tokens, use_cache=True, logits_to_keep=1)

            contenders[f"peer {name} {attention}+{experts}"] = theirs
    return contenders


def report(title: str, contenders: dict[str, Callable], flops: float, rounds: int) -> None:
    """Time all, then print each dtype's ratio to the fastest setting of the peer, and the best against the best."""
    peaks = {name: matmul_rate(dtype) for name, dtype in DTYPES.items()}
    times = interleave(contenders, rounds, warm=1)
    middle = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    print(f"\n{title}")
    for name, seconds in middle.items():
        share = flops / seconds / peaks[name.split()[1]]
        print(f"  {name:<28} {seconds * 1e3:8.1f} ms   {share:5.1%} of the {name.split()[1]} matrix-product rate")

    def fastest(words: str) -> str:
        return min((n for n in middle if n.startswith(words)), key=middle.__getitem__)

    for dtype in DTYPES:
        ratio = median_ratio(times, fastest(f"peer {dtype}"), f"ours {dtype}")
        print(f"  {dtype}: {ratio:.2f} x the speed of {fastest(f'peer {dtype}')}")
    ratio = median_ratio(times, fastest("peer"), fastest("ours"))
    print(f"  each at its best: {ratio:.2f} x ({fastest('ours')} against {fastest('peer')})")


def main(rounds: int = 7) -> None:
    """Print both comparisons."""
    config = nano().config
    print(f"threads {torch.get_num_threads()}; nano: {count_parameters(config).main:,} parameters")
    report(
        f"training, {ROWS} x {LENGTH} tokens",
        training_contenders(),
        training_flops(config, LENGTH) * ROWS * LENGTH,
        rounds,
    )
    count = count_parameters(config)
    weights = count.active - 2 * count.embedding  # one row of logits only
    flops = PROMPT * (2 * weights + attention_flops(config, PROMPT / 2))
    report(f"prefill, {PROMPT} tokens", prefill_contenders(), flops, rounds)
    print("\n  bound by: matrix products for the most part (see the shares);")
    print("  the rest is memory traffic of norms, rotation, softmax and the sorting of rows.")


if __name__ == "__main__":
    main()
