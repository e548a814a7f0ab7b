"""Generate: one prompt streamed token by token, or several prompts of different length at once.

    for token in generate(model, tokens, max_new_tokens=64, temperature=0.8, seed=1): ...
    rows = generate_batch(model, [[5, 7], [3]], max_new_tokens=16)

With `speculative` the model's MTP modules draft, and the main model verifies the drafts in one pass (speculative.py).

Letters: B batch, S tokens, D width, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from typing import cast
from weakref import WeakKeyDictionary, proxy

import torch
from torch import Tensor

from deepseek_v3.engine.request import GenerationStatistics, check_prompt, count_drafts
from deepseek_v3.engine.sampler import SamplingRule, draw_token, make_generator
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.serving.decode_step import PREFILL_CHUNK, SERVES_UP_TO, DecodeStep
from deepseek_v3.serving.speculative import Drafter, judge_drafts


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
    stop_tokens: Sequence[int] | None = None,
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
        ValueError: a prompt or setting that cannot work, said at the call and not at the first token.
    """
    prompt = check_prompt(model, tokens)
    rule = SamplingRule(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 0")
    drafts = count_drafts(model, speculative)
    stop = frozenset(model.config.eos_token_ids if stop_tokens is None else stop_tokens)
    generator = make_generator(seed, model.lm_head.weight.device)
    # the last token is drawn but not read: it needs no slot
    limit = min(max_new_tokens, model.config.max_position_embeddings - len(prompt) + 1)
    session = _Session(model, len(prompt) + limit + drafts, drafts, cache_dtype=cache_dtype)
    return session.run(prompt, limit, rule, generator, stop, statistics or GenerationStatistics())


class _Session:
    """The caches and the step of one generation."""

    def __init__(self, model: DeepseekV3, capacity: int, drafts: int, *, cache_dtype: torch.dtype | None) -> None:
        self.model, self.drafts = model, drafts
        self.step = prepare_step(model)
        place = {"dtype": cache_dtype or model.lm_head.weight.dtype, "device": model.lm_head.weight.device}
        with torch.inference_mode():
            self.cache = LatentCache.dense(model.config, 1, capacity, **place)
            modules = min(drafts, len(model.mtp))
            caches = [LatentCache.dense(model.config, 1, capacity, layers=1, **place) for _ in range(modules)]
        self.drafter = Drafter(self.step.predict, caches)

    def run(
        self,
        prompt: list[int],
        limit: int,
        rule: SamplingRule,
        generator: torch.Generator,
        stop: frozenset[int | None],
        statistics: GenerationStatistics,
    ) -> Iterator[int]:
        """Prefill, then draft (or not), verify and yield, step after step."""
        statistics.prompt_tokens = len(prompt)
        if limit < 1:
            return
        known, first, clock = list(prompt), len(prompt), time.perf_counter()
        hidden_BSD, token = self._prefill(prompt, rule, generator)
        statistics.prefill_s = time.perf_counter() - clock
        fresh = [token]
        while True:
            for token in fresh:
                if token in stop:
                    return
                known.append(token)
                statistics.new_tokens += 1
                yield token
            left = limit - (len(known) - first)
            if left == 0:
                return
            clock = time.perf_counter()
            # a step brings one token more than there are drafts
            hidden_BSD, fresh = self._advance(
                hidden_BSD, known, min(self.drafts, left - 1), rule, generator, statistics
            )
            statistics.decode_s += time.perf_counter() - clock

    @torch.inference_mode()
    def _prefill(self, prompt: list[int], rule: SamplingRule, generator: torch.Generator) -> tuple[Tensor, int]:
        hidden_BSD = read_prompt(self.model, self.step, self._tensor(prompt), self.cache, keep=self.drafts > 0)
        return hidden_BSD, choose_token(self.model.lm_head(hidden_BSD[0, -1]), rule, generator)

    @torch.inference_mode()
    def _advance(
        self,
        hidden_BSD: Tensor,
        known: list[int],
        count: int,
        rule: SamplingRule,
        generator: torch.Generator,
        statistics: GenerationStatistics,
    ) -> tuple[Tensor, list[int]]:
        """Take one step of the main model; return the hidden states of what it read for good, and the new tokens."""
        drafts, proposals = self.drafter.draft(hidden_BSD, known, count, rule, generator) if count else ([], [])
        hidden_BSD, logits_BSV = self.step(self._tensor([known[-1], *drafts]), self.cache)
        stood, token = judge_drafts(logits_BSV[0], drafts, proposals, rule, generator)
        self.cache.truncate([len(known) + stood])  # the rejected drafts' latents are forgotten
        statistics.steps += 1
        if count:
            statistics.count_drafts(count, stood)
        return hidden_BSD[:, : stood + 1], [*drafts[:stood], token]

    def _tensor(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self.model.lm_head.weight.device)


@torch.inference_mode()
def generate_batch(
    model: DeepseekV3,
    prompts: Sequence[Tensor | Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop_tokens: Sequence[int] | None = None,
) -> list[list[int]]:
    """Generate for several prompts at once; row i is what `generate` yields for prompt i with seed + i.

    The prompts are padded on the right for reading; each row is then cut to its own length in the cache, so that no
    token ever sees the padding. A row that has stopped is carried along, unread, until all have.

    Raises:
        ValueError: no prompts, or as in `generate`.
    """
    if not prompts:
        raise ValueError("generate_batch needs at least one prompt")
    rows = [check_prompt(model, prompt) for prompt in prompts]
    rule = SamplingRule(temperature, top_k, top_p)
    stop = frozenset(model.config.eos_token_ids if stop_tokens is None else stop_tokens)
    weight, context = model.lm_head.weight, model.config.max_position_embeddings
    generators = [make_generator(None if seed is None else seed + i, weight.device) for i in range(len(rows))]
    limits = [min(max_new_tokens, context - len(row) + 1) for row in rows]
    longest = max(len(row) for row in rows)
    capacity = longest + max(max(limits), 1)
    cache = LatentCache.dense(model.config, len(rows), capacity, dtype=weight.dtype, device=weight.device)
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=weight.device)
    step = prepare_step(model)
    hidden_BSD = read_prompt(model, step, padded, cache, keep=True)
    cache.truncate([len(row) for row in rows])
    last_BD = hidden_BSD[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    logits_BV = model.lm_head(last_BD)
    out: list[list[int]] = [[] for _ in rows]
    running = [limit > 0 for limit in limits]
    while any(running):
        tokens = [choose_token(logits, rule, g) if run else 0 for logits, g, run in zip(logits_BV, generators, running)]
        for i, token in enumerate(tokens):
            running[i] = running[i] and token not in stop
            if running[i]:
                out[i].append(token)
                running[i] = len(out[i]) < limits[i]
        if any(running):
            logits_BV = step(torch.tensor(tokens, device=weight.device).unsqueeze(1), cache)[1][:, -1]
    return out


def read_prompt(model: DeepseekV3, step: DecodeStep, tokens_BS: Tensor, cache: LatentCache, *, keep: bool) -> Tensor:
    """Read a prompt in chunks; return the normed hidden states of all its tokens, or of the last chunk's only.

    A short one, or a short end, goes through the kernel of the decoding step where it serves: one call, not hundreds.
    """
    hiddens: list[Tensor] = []
    for chunk_BS in tokens_BS.split(PREFILL_CHUNK, 1):
        short = chunk_BS.numel() <= SERVES_UP_TO and step.native.serves(cache)
        hidden_BSD = step(chunk_BS, cache)[0] if short else model.hidden_states(chunk_BS, cache=cache)
        hiddens = [*(hiddens if keep else []), hidden_BSD]
    return torch.cat(hiddens, 1)


def choose_token(logits_V: Tensor, rule: SamplingRule, generator: torch.Generator) -> int:
    """Take the likeliest token, or draw one."""
    return int(logits_V.argmax()) if rule.greedy else draw_token(rule.probabilities(logits_V), generator)


_prepared: WeakKeyDictionary[DeepseekV3, DecodeStep] = WeakKeyDictionary()


def prepare_step(model: DeepseekV3) -> DecodeStep:
    """Return the model's decoding step with its present weights; made once."""
    if model in _prepared:
        _prepared[model].refresh()
    else:
        _prepared[model] = DecodeStep(cast(DeepseekV3, proxy(model)))  # a step kept here must not keep it
    return _prepared[model]
