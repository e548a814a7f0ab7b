"""Generate: one prompt streamed token by token, or several prompts of different length at once.

    for token in generate(model, tokens, max_new_tokens=64, temperature=0.8, seed=1): ...
    rows = generate_batch(model, [[5, 7], [3]], max_new_tokens=16)

Both are doors: they make requests, and an engine with just the blocks that these need, one a sequence.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from deepseek_v3.engine.engine import Engine, Event
from deepseek_v3.engine.request import EngineOptions, GenerationStatistics, Request, check_prompt, count_drafts
from deepseek_v3.engine.sampler import BrokenLogits, SamplingRule
from deepseek_v3.model.model_parts import find_broken_weight
from deepseek_v3.model.transformer import DeepseekV3

PREFILL_CHUNK = 512  # prompt tokens read at once: bounds the memory of scores


def generate(
    model: DeepseekV3,
    tokens: Tensor | Sequence[int],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    speculative: bool | int = False,
    stop_tokens: Collection[int] | None = None,
    cache_dtype: torch.dtype | None = None,
    statistics: GenerationStatistics | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, one by one.

    Ends after max_new_tokens, before a stop token, or when the context of max_position_embeddings is full.

    Args:
        tokens: the prompt, int64 [1, S] or [S], or a list.
        temperature: 0 takes the likeliest token; then top_k and top_p change nothing.
        seed: makes the draws repeatable.
        speculative: draft with the MTP modules: True as many tokens as there are modules, a number that many. Greedy
            tokens are those of plain decoding: to the last bit by the CPU's kernel. In PyTorch operations a step of
            several tokens adds up in another order, so two tokens that are equally likely may swap, in BF16 sooner
            than in FP32.
        stop_tokens: not yielded; None means the config's eos_token_id.
        cache_dtype: of the latent cache; the model's own by default.
        statistics: filled in as the tokens come.
    Raises:
        ValueError: a prompt or setting that cannot work, said at the call and not at the first token; and as the
            tokens come, logits that are no numbers.
    """
    rule = SamplingRule(temperature, top_k, top_p)
    requests = make_requests(model, [tokens], max_new_tokens, rule, seed, speculative, stop_tokens)
    statistics = GenerationStatistics() if statistics is None else statistics
    statistics.prompt_tokens = len(requests[0].tokens)
    if max_new_tokens == 0:
        return iter(())
    engine = open_engine(model, requests, cache_dtype)
    engine.admit(requests[0]).statistics = statistics
    return (token for event in run_out(engine) for token in event.tokens)


def generate_batch(
    model: DeepseekV3,
    prompts: Sequence[Tensor | Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    speculative: bool | int = False,
    stop_tokens: Collection[int] | None = None,
    cache_dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Generate for several prompts at once; row i is what `generate` yields for prompt i with seed + i.

    Raises:
        ValueError: no prompts, or as in `generate`.
    """
    if not prompts:
        raise ValueError("generate_batch needs at least one prompt")
    rule = SamplingRule(temperature, top_k, top_p)
    requests = make_requests(model, prompts, max_new_tokens, rule, seed, speculative, stop_tokens)
    if max_new_tokens == 0:
        return [[] for _ in requests]
    engine = open_engine(model, requests, cache_dtype)
    sequences = [engine.admit(request) for request in requests]
    for _ in run_out(engine):
        pass
    return [sequence.text for sequence in sequences]


def make_requests(
    model: DeepseekV3, prompts: Sequence[Tensor | Sequence[int]], max_new_tokens: int, rule: SamplingRule,
    seed: int | None, speculative: bool | int, stop_tokens: Collection[int] | None,
) -> list[Request]:  # fmt: skip
    """Return one request for every prompt, with seeds of their own; the config's end tokens end a text by default."""
    drafts, end = count_drafts(model, speculative), model.config.eos_token_id
    ends = () if end is None else [end] if isinstance(end, int) else end
    stop = frozenset(ends if stop_tokens is None else stop_tokens)
    rows = [check_prompt(model, prompt) for prompt in prompts]
    seeds = [None if seed is None else seed + i for i in range(len(rows))]
    return [Request(row, rule, max_new_tokens, seeds[i], drafts, stop) for i, row in enumerate(rows)]


def open_engine(model: DeepseekV3, requests: Sequence[Request], cache_dtype: torch.dtype | None) -> Engine:
    """Make an engine with one block for every request: all run side by side, and nobody waits for memory."""
    rows, drafts = len(requests), max(request.drafts for request in requests)
    slots, tokens = max(request.slots(model.config) for request in requests), max(PREFILL_CHUNK, rows * (1 + drafts))
    limits = EngineOptions(rows, slots, tokens, rows, long_piece=PREFILL_CHUNK, modules=drafts, cache_dtype=cache_dtype)
    return Engine(model, limits)


def run_out(engine: Engine) -> Iterator[Event]:
    """Step until every text is over.

    Raises:
        BrokenLogits: the first error of a step; the weight that is to blame is named.
    """
    while engine.sequences:
        for event in engine.step():
            if event.error:
                name = find_broken_weight(engine.model)
                raise BrokenLogits(event.error + (f": {name} holds NaN or infinity" if name else ""))
            yield event
