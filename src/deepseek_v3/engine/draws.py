"""The tokens of many sequences drawn in one go: to the last bit what each of them would draw alone.

    token = argmax_v p_v / e_v,   e_v ~ Exp(1) from the sequence's own generator       the race of torch.multinomial

For those whose next token hangs on nothing but their logits and one rule. Who drafts, or whose logits are steered, is
judged by itself; so is whoever has logits that are no numbers.

Letters: M sequences, S rows of one, V vocabulary.
"""

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.engine.runner import Read
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.scheduler import Row
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.speculative import Proposal

FEWEST = 2  # sequences; one alone is judged as ever


class Drawn(NamedTuple):
    """A token, and log pi of it where a sequence of the step is traced."""

    token: int
    logprob: float = 0.0


def draw_together(rows: Rows[Row], proposals: Rows[Proposal], reads: Rows[Read]) -> list[Drawn | None]:
    """Draw for all rows of a step that can be drawn for together; None for the others.

    Args:
        reads: of each row; its last logits are what its next token hangs on.
    """
    found: list[Drawn | None] = [None] * len(rows)
    if len(rows) < FEWEST:
        return found
    by_rule: dict[SamplingRule, list[int]] = {}
    for i, (row, proposal) in enumerate(zip(rows, proposals)):
        if not proposal.tokens and is_plain(row):
            by_rule.setdefault(row.sequence.request.rule, []).append(i)
    for rule, places in by_rule.items():
        if len(places) >= FEWEST:
            last, logits_MV = [reads[i].logits_end - 1 for i in places], reads[0].logits_MV
            if last != list(range(len(logits_MV))):
                logits_MV = logits_MV[last]
            for i, drawn in zip(places, draw_rows(logits_MV, rule, [rows[i].sequence for i in places])):
                found[i] = drawn
    return found


def is_plain(row: Row) -> bool:
    """Whether a row brings its sequence's next token, by its logits and its rule alone."""
    sequence = row.sequence
    steered, broken = sequence.steerer is not None, bool(sequence.error)
    return not steered and not broken and sequence.limit > 0 and sequence.read + row.size == len(sequence.tokens)


def draw_rows(logits_MV: Tensor, rule: SamplingRule, sequences: Rows[Sequence]) -> list[Drawn | None]:
    """Draw a token for every row, with its sequence's generator; None where the largest logit is no finite number."""
    top_M, token_M = logits_MV.max(-1)
    if not rule.greedy:
        probability_MV = rule.probabilities(logits_MV)
        race_MV = torch.empty_like(probability_MV)
        for race_V, sequence in zip(race_MV, sequences):
            race_V.exponential_(generator=sequence.generator)
        token_M = (probability_MV / race_MV).argmax(-1)
    logprobs = [0.0] * len(sequences)
    if any(sequence.trace is not None for sequence in sequences):
        at_MV = logits_MV / (rule.temperature or 1.0)
        logprobs = at_MV.log_softmax(-1).gather(1, token_M[:, None]).flatten().tolist()
    finite = top_M.isfinite().tolist()
    drawn = [Drawn(token, logprob) for token, logprob in zip(token_M.tolist(), logprobs)]
    return [one if good else None for one, good in zip(drawn, finite)]
