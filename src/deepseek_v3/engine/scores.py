"""Log-probabilities of tokens: the model's own, before temperature, penalties, bias and grammar.

Letters: S rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_SCORES = 20  # likeliest tokens that a request may ask for at every place


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
