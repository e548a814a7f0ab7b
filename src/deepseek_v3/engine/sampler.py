"""From logits to a token: temperature, top-k, top-p, min-p, and one seeded draw; and what tokens are worth.

    rule = SamplingRule(temperature=0.8, top_k=40, top_p=0.95)
    token = draw_token(rule.probabilities(logits_V), generator)

Scores are the model's own log-probabilities, before temperature, penalties, bias and grammar.

Letters: S rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-30  # below, FP32 would divide by 0 and keep no token; what it means is the same: the likeliest one
SEEDS = range(-(2**63), 2**63)
MOST_SCORES = 20  # likeliest tokens that a request may ask for at every place


class BrokenLogits(ValueError):
    """Logits that no token can be chosen by: NaN, or an infinity at the top."""


def find_likeliest(logits_SV: Tensor) -> list[int]:
    """Return the likeliest token of every row.

    Raises:
        BrokenLogits: a row whose largest logit is no finite number.
    """
    top_S, token_S = logits_SV.max(-1)
    top = sum(top_S.tolist())
    if not math.isfinite(top):
        raise BrokenLogits(f"{top}, so no token can be chosen; look for weights that are not finite numbers")
    return token_S.tolist()


@dataclass(frozen=True)
class SamplingRule:
    """How a token is chosen; temperature 0 takes the likeliest.

    Attributes:
        top_k: only the k likeliest tokens stay; 0 keeps all.
        top_p: only the likeliest tokens stay that together reach this probability; 1 keeps all.
        min_p: only tokens stay that are at least this times as likely as the likeliest; 0 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must lie in [0, 1]; 0 keeps every token")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """Return the distribution that a token is drawn from, FP32 (FP64 for FP64 logits), over the last axis.

        Temperature first, then top-k, then top-p among what is left, then min-p, then normalised.
        """
        logits_V = logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))
        if self.greedy:
            return torch.zeros_like(logits_V).scatter_(-1, logits_V.argmax(-1, keepdim=True), 1.0)
        top = logits_V.amax(-1, keepdim=True)  # so that a tiny temperature cannot overflow
        probability_V = ((logits_V - top) / max(self.temperature, SMALLEST)).softmax(-1)
        if self.top_k in range(1, logits_V.shape[-1]) or self.top_p < 1:
            probability_V = self._cut_tail(probability_V)
        if self.min_p > 0:
            least = self.min_p * probability_V.amax(-1, keepdim=True)
            probability_V = probability_V.masked_fill(probability_V < least, 0)
            probability_V /= probability_V.sum(-1, keepdim=True)
        return probability_V

    def _cut_tail(self, probability_V: Tensor) -> Tensor:
        sorted_V, order_V = probability_V.sort(dim=-1, descending=True, stable=True)
        if 0 < self.top_k < sorted_V.shape[-1]:
            sorted_V[..., self.top_k :] = 0
            sorted_V /= sorted_V.sum(-1, keepdim=True)
        if self.top_p < 1:
            before_V = sorted_V.cumsum(-1) - sorted_V  # mass of the likelier tokens: the first one always stays
            sorted_V = sorted_V.masked_fill(before_V >= max(self.top_p, SMALLEST), 0)
        kept_V = torch.zeros_like(probability_V).scatter_(-1, order_V, sorted_V)
        return kept_V / kept_V.sum(-1, keepdim=True)


def make_generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a source of randomness: the same draws for the same seed, fresh ones for None."""
    generator = torch.Generator(device)
    generator.manual_seed(generator.seed() if seed is None else seed)
    return generator


def draw_token(probability_V: Tensor, generator: torch.Generator) -> int:
    """Draw one token from a distribution [V]."""
    return int(torch.multinomial(probability_V, 1, generator=generator))


class Score(NamedTuple):
    """A token's log-probability in nats, and the likeliest tokens at its place with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def score_tokens(logits_SV: Tensor, tokens: Sequence[int], top: int) -> list[Score]:
    """Score a token for every row, and name so many of the likeliest."""
    logprob_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32)).log_softmax(-1)
    chosen_S1 = torch.tensor(tokens, dtype=torch.int64, device=logits_SV.device)[:, None]
    values, ids = logprob_SV.topk(min(top, logprob_SV.shape[-1]))
    tops = [list(zip(*row)) for row in zip(ids.tolist(), values.tolist())]
    return [Score(*score) for score in zip(tokens, logprob_SV.gather(1, chosen_S1)[:, 0].tolist(), tops)]
