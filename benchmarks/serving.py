"""The engine under load: python -m benchmarks.serving [--run runs/demo] [--layers 2] [--drafts-only]

Three tables, each of contenders that take turns; a ratio is the median over the rounds.

1. Tokens a second at batch 1, 8 and 32 on `nano` with random weights, behind prompts of 128 tokens, and the time to the
   first token of a prompt of 2,048: the engine against transformers with its cache, in the fastest of its settings.
2. MTP on a trained run (`--run`; left out where there is none), prompts of its own text, at batch 1, 4 and 8.
3. MTP on a few layers (`--layers`, 2) of V2-Lite's widths, in BF16, at a known acceptance. Random weights accept
   nothing, so the model is made to count: attention and experts are computed in full and add nothing, the head takes a
   token of a ring to the next one, and the module knows that for a share of the tokens.

MTP rows give the wall-clock gain over plain decoding of drafting always and of drafting while it pays, each also with a
head in FP8 for the drafts (`serve` does both: it drafts with that head, while it pays); then tokens a step of drafting
always, the acceptance, and the break-even acceptance: what a draft costs, in tokens that would have come instead, by
the times of steps that the engine measures itself.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.decode import SETTINGS
from benchmarks.machine import interleave, median_ratio
from benchmarks.peers import make_peer, nano
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.model.transformer import DeepseekV3

PROMPT, NEW, LONG = 128, 64, 2048
BATCHES, MTP_BATCHES = (1, 8, 32), (1, 4, 8)
RING, SHARE = 101, 0.8  # tokens that the counting model knows, and of how many its module is right


class Served(NamedTuple):
    """One run of the engine: seconds of decoding, and the engine for its counts."""

    seconds: float
    engine: Engine


def serve(
    model: DeepseekV3, prompts: list[list[int]], new: int = NEW, *, fp8_drafts: bool = False, **options
) -> Served:
    """Serve prompts of one length side by side; time the steps after all have been read."""
    slots = len(prompts[0]) + new
    limits = {"n_blocks": len(prompts), "block_size": slots, "max_rows": len(prompts)}
    engine = Engine(model, EngineOptions(**limits, fp8_drafts=fp8_drafts))
    sequences = [engine.admit(Request(prompt, max_new_tokens=new, **options)) for prompt in prompts]
    while not all(sequence.new for sequence in sequences):
        engine.step()
    start = time.perf_counter()
    while engine.sequences:
        engine.step()
    return Served(time.perf_counter() - start, engine)


def random_prompts(rows: int, length: int, vocab: int) -> list[list[int]]:
    """Prompts of random tokens, the same in every call."""
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()


def peer_run(peer, prompts: list[list[int]], new: int) -> Callable[[], object]:
    """The same by transformers, greedy, with its dynamic cache; the prompt is read outside of the time."""
    from transformers import DynamicCache

    prompts_BS = torch.tensor(prompts)
    cache = DynamicCache(config=peer.config)
    with torch.inference_mode():
        peer(prompts_BS, past_key_values=cache, use_cache=True)

    @torch.inference_mode()
    def run() -> None:
        if extra := cache.get_seq_length() - prompts_BS.shape[1]:
            cache.crop(-extra)
        tokens_B1 = prompts_BS[:, -1:]
        for _ in range(new):
            tokens_B1 = peer(tokens_B1, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return run


def timed_ways(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time ways in turn; one that returns how it was served counts its decoding only."""

    def once(run: Callable[[], object], times: list[float]) -> None:
        start = time.perf_counter()
        result = run()
        times.append(result.seconds if isinstance(result, Served) else time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [] for name in ways}
    interleave({name: lambda run=run, name=name: once(run, times[name]) for name, run in ways.items()}, rounds, warm=1)
    return {name: seconds[1:] for name, seconds in times.items()}


def print_rates(rounds: int, model: DeepseekV3, batches: tuple[int, ...] = BATCHES, new: int = NEW) -> None:
    """Print tokens a second of both, and their ratio."""
    peers = {f"peer {s}": make_peer(model, torch.float32, s).eval() for s in SETTINGS}
    for rows in batches:
        prompts = random_prompts(rows, PROMPT, model.config.vocab_size)
        ways = {"engine": lambda prompts=prompts: serve(model, prompts, new)}
        ways |= {name: peer_run(peer, prompts, new - 1) for name, peer in peers.items()}
        times = timed_ways(ways, rounds)
        best = min(peers, key=lambda name: sorted(times[name])[len(times[name]) // 2])
        ours, theirs = (rows * (new - 1) / sorted(times[n])[len(times[n]) // 2] for n in ("engine", best))
        ratio = median_ratio(times, best, "engine")
        print(f"  batch {rows:2}: {ours:7.0f} tokens/s, {best} {theirs:7.0f}: {ratio:.2f} x")


def print_first_token(rounds: int, model: DeepseekV3, length: int = LONG) -> None:
    """Print the time to the first token of a long prompt: in short pieces, which can be shared, and in long ones."""
    (prompt,) = random_prompts(1, length, model.config.vocab_size)

    def first(**options) -> Callable[[], object]:
        def run() -> None:
            engine = Engine(model, EngineOptions(n_blocks=-(-length // 32) + 1, **options))
            sequence = engine.admit(Request(prompt, max_new_tokens=1))
            while not sequence.finish:
                engine.step()

        return run

    @torch.inference_mode()
    def theirs(peer) -> None:
        peer(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    ways: dict[str, Callable[[], object]] = {"in pieces of 64": first(), "in pieces of 512": first(long_piece=512)}
    peers = {f"peer {s}": make_peer(model, torch.float32, s).eval() for s in SETTINGS}
    ways |= {name: lambda peer=peer: theirs(peer) for name, peer in peers.items()}
    times = timed_ways(ways, rounds)
    for name, seconds in times.items():
        print(f"  first token of {length}: {name:<24} {sorted(seconds)[len(seconds) // 2] * 1e3:8.0f} ms")


def make_counter(config: ModelConfig, share: float, dtype: torch.dtype) -> DeepseekV3:
    """A model that counts along a ring of tokens, at the cost of any other; its module is right for a share of them."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # drawn in FP32, six layers of V2-Lite's widths would want 14 GB for a moment
    try:
        model = DeepseekV3(config.replace(num_nextn_predict_layers=1, tie_word_embeddings=False)).to(dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    ring = min(RING, config.hidden_size, config.vocab_size)
    wrong = random.Random(0).sample(range(ring), round((1 - share) * ring))
    eye_CD = torch.eye(ring, config.hidden_size, dtype=dtype)
    module: MultiTokenPredictor = model.mtp[0]  # type: ignore[assignment]
    with torch.no_grad():
        for block in [*model.layers, module.block]:
            block.self_attn.o_proj.weight.zero_()
            for name, parameter in block.mlp.named_parameters():
                if "down_proj" in name:
                    parameter.zero_()
        model.embed_tokens.weight[:ring] = eye_CD
        model.lm_head.weight[:ring] = eye_CD.roll(1, 0)  # row t + 1 answers to token t
        own_DD = torch.eye(config.hidden_size, dtype=dtype)
        own_DD[:, wrong] = own_DD[:, [(token + 3) % ring for token in wrong]]  # takes a token for another
        module.eh_proj.weight.copy_(torch.cat((own_DD, torch.zeros_like(own_DD)), 1))
    return model.eval()


def measure_drafts(model: DeepseekV3, prompts: list[list[int]], rounds: int, new: int = NEW) -> dict[str, float]:
    """Time plain decoding, one draft always, and one while it pays."""
    last: dict[str, Served] = {}

    def way(name: str, **options) -> Callable[[], Served]:
        def run() -> Served:
            last[name] = serve(model, prompts, new, **options)
            return last[name]

        return run

    always, adaptive, fp8 = {"drafts": 1}, {"drafts": 1, "adaptive": True}, {"fp8_drafts": True}
    ways = {"plain": way("plain"), "always": way("always", **always), "adaptive": way("adaptive", **adaptive)}
    ways |= {"always, FP8": way("fp8", **always, **fp8), "adaptive, FP8": way("both", **adaptive, **fp8)}
    times = timed_ways(ways, rounds)
    counts, costs = last["always"].engine.metrics(), last["adaptive"].engine.scheduler.costs
    costs.now = len(prompts), 0
    return {
        "tokens a second, plain": len(prompts) * (new - 1) / sorted(times["plain"])[rounds // 2],
        "gain, always": median_ratio(times, "plain", "always"),
        "gain, adaptive": median_ratio(times, "plain", "adaptive"),
        "gain, always, FP8 drafts": median_ratio(times, "plain", "always, FP8"),
        "gain, adaptive, FP8 drafts": median_ratio(times, "plain", "adaptive, FP8"),
        "tokens a step": 1 + counts.accepted / max(1, counts.drafted),
        "acceptance": counts.accepted / max(1, counts.drafted),
        "break-even": costs.break_even() if costs.known else float("nan"),
    }


def print_drafts(name: str, model: DeepseekV3, prompts: list[list[int]], rounds: int, new: int = NEW) -> None:
    """Print the rows of a model."""
    for rows in MTP_BATCHES:
        found = measure_drafts(model, prompts[:rows], rounds, new)
        print(f"  {name}, batch {rows}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))


def print_run(folder: Path, rounds: int) -> None:
    """Print the rows of a trained run, on beginnings of its own kind of text."""
    if not folder.exists():
        print(f"  {folder} is not there (`make demo` makes it), so MTP on a trained model is left out")
        return
    from deepseek_v3.model_io import load

    model, tokenizer = load(folder)
    assert tokenizer is not None
    text = Path(__file__).read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    prompts = [[tokenizer.bos_id, *ids[i * 64 : i * 64 + 63]] for i in range(max(MTP_BATCHES))]
    print_drafts(str(folder), model.eval(), prompts, rounds, 256)


def main(rounds: int = 5, run: str = "runs/demo", layers: int = 2, drafts_only: bool = False) -> None:
    """Print all three tables, or those of drafts."""
    print(f"\nserving, {torch.get_num_threads()} threads")
    if not drafts_only:
        model = nano().eval()
        print_rates(rounds, model)
        print_first_token(max(3, rounds // 3), model)
        del model
    print_run(Path(run), rounds)
    wide = ModelConfig.preset("v2-lite-16b").replace(num_hidden_layers=layers)
    counter = make_counter(wide, SHARE, torch.bfloat16)
    prompts = [[(13 * row + 1) % RING] for row in range(max(MTP_BATCHES))]
    print_drafts(f"{layers} layers of V2-Lite's widths", counter, prompts, rounds)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", default="runs/demo")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--layers", type=int, default=2, help="of V2-Lite's 27, in the third table")
    options.add_argument("--drafts-only", action="store_true", help="the second and the third table alone")
    main(**vars(options.parse_args()))
