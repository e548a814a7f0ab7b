"""What a generation is asked for, checked, and what it did, counted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.grammar import Constraint
from deepseek_v3.engine.sampler import MOST_SCORES, SEEDS, SamplingRule
from deepseek_v3.engine.steering import Steering
from deepseek_v3.model.transformer import DeepseekV3

MOST_DRAFTS = 256  # far beyond what is ever accepted
GREEDY, UNSTEERED = SamplingRule(), Steering()
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Attributes:
        drafts: tokens that the MTP modules propose a step.
        stop_tokens: it ends before any of them.
        adaptive: make drafts only while they pay by measured time. Drawn with a seed it drafts always: its tokens would
            depend on the clock.
        stop: texts that it ends before; nothing of them is shown.
        logprobs: score every token of the text, and name so many of the likeliest beside it; None scores none.
        prompt_logprobs: the same of the prompt; then max_new_tokens may be 0.
        constraint: a grammar that the text follows, ended by its own end token.
        trace: keep what was drawn, how likely it was and, if the engine records them, its experts: see `trace.py`.
    """

    tokens: Sequence[int]
    rule: SamplingRule = GREEDY
    max_new_tokens: int = 64
    seed: int | None = None
    drafts: int = 0
    stop_tokens: Collection[int] = ()
    adaptive: bool = False
    stop: tuple[str, ...] = ()
    steering: Steering = UNSTEERED
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 0")
        if self.seed is not None and self.seed not in SEEDS:
            raise ValueError(f"seed={self.seed} must be a number of 64 bits, from {SEEDS[0]} to {SEEDS[-1]}")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None and not 0 <= count <= MOST_SCORES:
                raise ValueError(f"{name}={count} must lie between 0 and {MOST_SCORES}")

    @property
    def steered(self) -> bool:
        """Whether its logits are changed before a token is chosen."""
        return self.constraint is not None or self.steering.penalises or bool(self.steering.logit_bias)

    @property
    def all_stop_tokens(self) -> frozenset[int]:
        """What it ends before: also the end of its grammar."""
        return frozenset(self.stop_tokens) | ({self.constraint.end_token} if self.constraint else set())

    def limit(self, config: ModelConfig) -> int:
        """Tokens to generate at most: what was asked for, or what the context has room for."""
        return min(self.max_new_tokens, config.max_position_embeddings - len(self.tokens) + 1)

    def slots(self, config: ModelConfig) -> int:
        """Cache slots that it will need at most: the last token is drawn but not read."""
        return len(self.tokens) + max(0, self.limit(config) - 1)


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine holds and reads at once.

    Attributes:
        n_blocks: blocks of the cache, for all sequences together.
        block_size: tokens of a block.
        step_tokens: tokens of a step, drafts included.
        max_rows: sequences that run side by side; further ones wait.
        short_piece: a prompt is read in pieces of so many tokens at most, beside the other rows.
        long_piece: 0, or: what is longer than a short piece is read in pieces of this size, one a step, as matrices.
            Faster for long prompts; but no prefix is shared then, since its bits depend on where the prompt ends.
        cache_dtype: None means the model's.
        modules: MTP modules that may draft; None means all.
        record_choices: keep the experts of every token in the cache.
        fp8_drafts: draft with a copy of the head in FP8: the head is most of what a draft reads. Every draft is
            verified as ever: greedy text stays, and the distribution of drawn text; how many drafts stand may change.
    """

    n_blocks: int
    block_size: int = 32
    step_tokens: int = 256
    max_rows: int = 8
    short_piece: int = 64
    long_piece: int = 0
    cache_dtype: torch.dtype | None = None
    modules: int | None = None
    record_choices: bool = False
    fp8_drafts: bool = False

    def __post_init__(self) -> None:
        for name in ("n_blocks", "block_size", "step_tokens", "max_rows", "short_piece"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.cache_dtype not in (None, *CACHE_DTYPES):
            raise ValueError(f"cache_dtype={self.cache_dtype} must be one of {', '.join(map(str, CACHE_DTYPES))}")

    @property
    def share_prefixes(self) -> bool:
        """Whether blocks of a finished or running sequence serve another that begins alike."""
        return self.long_piece == 0


@dataclass
class GenerationStatistics:
    """What one generation did; `generate` fills it in as it goes.

    Attributes:
        shared_tokens: of the prompt, those that lay in the cache already.
        steps: passes of the main model after the prompt.
        drafted: drafts of each depth.
        accepted: of these, the ones that became text.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of all drafts that became text; a draft behind one that fell has fallen too."""
        return sum(self.accepted) / sum(self.drafted) if self.drafted else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """The same of the first drafts, the second ones, and so on: none can be larger than the one before."""
        return [stood / made for stood, made in zip(self.accepted, self.drafted)]

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a pass of the main model brings; 1 without drafts. The first token is the prompt's own."""
        return (self.new_tokens - 1) / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate, the prompt and its first token not counted."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s and self.new_tokens else 0.0

    def count_step(self, made: int, stood: int) -> None:
        """Count one step of decoding, and its drafts by depth."""
        self.steps += 1
        for counts, share in ((self.drafted, made), (self.accepted, stood)):
            counts += [0] * (made - len(counts))
            for depth in range(share):
                counts[depth] += 1

    def count_time(self, seconds: float, *, decoding: bool) -> None:
        """Add the time of a step that this sequence had a part in."""
        self.decode_s += seconds if decoding else 0.0
        self.prefill_s += 0.0 if decoding else seconds


def check_request(request: Request, model: DeepseekV3, options: EngineOptions, modules: int) -> None:
    """Refuse what an engine can never serve.

    Raises:
        ValueError: a prompt as in `check_prompt`, no token asked for, too many drafts, or more than the cache holds.
    """
    check_prompt(model, request.tokens)
    if request.max_new_tokens < (request.prompt_logprobs is None) or request.drafts < 0:
        raise ValueError(f"max_new_tokens={request.max_new_tokens} must be at least 1, drafts={request.drafts} 0")
    if request.drafts and not modules:
        raise ValueError(f"drafts={request.drafts} need MTP modules, and this engine has none")
    if request.drafts >= options.step_tokens:
        raise ValueError(f"drafts={request.drafts} must be less than step_tokens={options.step_tokens}")
    vocab = model.config.vocab_size
    for token in request.steering.logit_bias:
        if not 0 <= token < vocab:
            raise ValueError(f"logit_bias names token {token}, which is outside the vocabulary of {vocab}")
    if request.constraint is not None and request.constraint.vocab_size != vocab:
        raise ValueError(f"the constraint is made for {request.constraint.vocab_size} tokens, the model has {vocab}")
    slots, room = request.slots(model.config), options.n_blocks * options.block_size
    if slots > room:
        raise ValueError(f"{slots} tokens are more than the engine's {room}; raise n_blocks or lower max_new_tokens")


def check_prompt(model: DeepseekV3, tokens: Tensor | Sequence[int]) -> list[int]:
    """Return the prompt as a list.

    Raises:
        ValueError: several sequences, none, a token that is none, or more tokens than the model has positions.
    """
    config = model.config
    if isinstance(tokens, Tensor):
        if tokens.is_floating_point() or tokens.dim() not in (1, 2) or tokens.shape[:-1].numel() != 1:
            found = f"tokens of shape {tuple(tokens.shape)} and {tokens.dtype} must be integers, [S] or [1, S]"
            raise ValueError(f"{found}; for several prompts use generate_batch")
        tokens = tokens.flatten().tolist()
    prompt = [int(token) for token in tokens]
    if not prompt:
        raise ValueError("the prompt is empty; start with the bos token, for instance")
    if wrong := [token for token in prompt if not 0 <= token < config.vocab_size]:
        raise ValueError(f"token {wrong[0]} is outside the vocabulary of {config.vocab_size}; another tokenizer's?")
    if len(prompt) > (most := config.max_position_embeddings):
        raise ValueError(f"the prompt has {len(prompt)} tokens, max_position_embeddings={most}; shorten it")
    return prompt


def count_drafts(model: DeepseekV3, speculative: bool | int) -> int:
    """Return how many tokens to draft a step.

    Raises:
        ValueError: a negative number, or a model without MTP modules.
    """
    drafts = len(model.mtp) if speculative is True else int(speculative)
    if not 0 <= drafts <= MOST_DRAFTS:
        raise ValueError(f"speculative={speculative} must be False, True or a number of drafts up to {MOST_DRAFTS}")
    if speculative and not len(model.mtp):
        said = "speculative decoding needs MTP modules and this model has none (num_nextn_predict_layers=0)"
        raise ValueError(f"{said}; pass speculative=False, or load a checkpoint that kept them")
    return drafts
