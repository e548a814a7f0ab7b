"""Speculative decoding with the multi-token prediction modules: draft cheaply, verify in one pass.

    known tokens t_0 .. t_n-1, of which the main model has read all but the last
    draft    module k reads (h^{k-1}_i, t_{i+k}) at position i; its last row, i = n - 2, predicts token n - 1 + k
    verify   the main model reads t_n-1 and the drafts at positions n - 1, n, ...; row j judges draft j + 1
    accept   draft d with probability min(1, p(d) / q(d)); the first rejected one is replaced by a draw from
             max(0, p - q), normalised; when all are accepted, one more token is drawn from the last row

What comes out is distributed exactly as without drafts, and greedy it is the same tokens. A module's row stays in its
cache only if all its inputs are known tokens; a row that was fed a draft is cut off, and read again once it is known.

Logits are steered (steering.py) before anything is judged by them: p and q are what tokens and drafts are drawn from.

Letters: D width, V vocabulary, S rows.
Source: arXiv:2412.19437, sections 2.2 and 5.4.3; the rule of acceptance is that of arXiv:2211.17192.
"""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from deepseek_v3.engine.runner import Reading, Runner
from deepseek_v3.engine.sampler import BrokenLogits, SamplingRule, draw_token, find_likeliest
from deepseek_v3.engine.scheduler import Row

CATCH_UP = 16  # hidden rows that may wait for the modules while a sequence makes no drafts


class Proposal:
    """The drafts of one sequence in one step, and its way through the chain of modules.

    Attributes:
        tokens: the drafts.
        sources: the distributions [V] that they were drawn from; none when greedy.
        below: the hidden rows [S, D] that the next module is handed, from the first it has not read for good.
    """

    def __init__(self, row: Row) -> None:
        self.sequence, self.count = row.sequence, row.drafts
        self.tokens: list[int] = []
        self.sources: list[Tensor] = []
        modules, fresh = row.sequence.modules, row.sequence.fresh
        if row.idle and sum(map(len, fresh)) <= CATCH_UP:
            self.depths, self.below = 0, []
            return
        # near its end a sequence drafts less and less, and deeper modules are not needed again
        self.depths = min(row.drafts, modules) if row.decoding and not row.idle else modules
        self.below, row.sequence.fresh = fresh, []

    def ask(self, depth: int) -> Reading | None:
        """Say what the module of a depth is to read: row i goes with token i + depth + 1, as far as that is known."""
        sequence = self.sequence
        rows = [*sequence.waiting[depth], *self.below]
        start = sequence.module_read[depth]
        known, first = len(sequence.tokens), start + depth + 1
        ahead = [*sequence.tokens[first:], *self.tokens[max(0, first - known) :]]
        handed_SD = rows[0] if len(rows) == 1 else torch.cat(rows) if rows else None
        count = 0 if handed_SD is None else min(len(ahead), len(handed_SD))
        self._settle(depth, handed_SD)
        self.below = []
        if handed_SD is None or not count:
            return None
        return Reading(sequence, ahead[:count], start, int(depth < self.count), handed_SD[:count])

    def _settle(self, depth: int, handed_SD: Tensor | None) -> None:
        """Count the rows whose inputs are all known tokens; those that come too early wait."""
        sequence, start = self.sequence, self.sequence.module_read[depth]
        keep, handed = (max(start, min(sequence.read, len(sequence.tokens) - 1 - d)) for d in (depth, depth - 1))
        sequence.module_read[depth] = keep
        early_SD = None if handed_SD is None else handed_SD[keep - start : handed - start]
        sequence.waiting[depth] = [] if early_SD is None or not len(early_SD) else [early_SD]

    def ask_further(self) -> Reading:
        """Let the last module read on from its own output, one position further."""
        start = len(self.sequence.tokens) - 1 + len(self.tokens) - self.depths
        return Reading(self.sequence, self.tokens[-1:], start, 1, self.below[-1][-1:])

    def propose(self, hidden_SD: Tensor, logits_SV: Tensor) -> None:
        """Take what a module has read; if a draft is wanted, draw it by the same rule as the real tokens."""
        self.below = [hidden_SD]
        if not len(logits_SV):
            return
        logits_SV = self.sequence.steer(logits_SV, self.tokens)
        rule, likeliest = self.sequence.request.rule, find_likeliest(logits_SV)
        if rule.greedy:  # judged by equality alone
            self.tokens += likeliest
            return
        self.sources.append(rule.probabilities(logits_SV[0]))
        self.tokens.append(draw_token(self.sources[-1], self.sequence.generator))


def draft_tokens(runner: Runner, rows: Rows[Row]) -> list[Proposal]:
    """Let the modules read what the main model has read since, and propose what every row asks for.

    All sequences go through a module together, in one ragged read.
    """
    proposals = [Proposal(row) for row in rows]
    if not runner.modules:
        return proposals
    for depth in range(max(p.depths for p in proposals)):
        asked = [(p, p.ask(depth)) for p in proposals if depth < p.depths]
        _read_module(runner, depth, [(p, reading) for p, reading in asked if reading is not None])
    for further in range(max(p.count - p.depths for p in proposals)):
        for depth in {p.depths - 1 for p in proposals if further < p.count - p.depths}:
            asked = [p for p in proposals if p.depths - 1 == depth and further < p.count - p.depths]
            _read_module(runner, depth, [(p, p.ask_further()) for p in asked])
    return proposals


def _read_module(runner: Runner, depth: int, asked: Rows[tuple[Proposal, Reading]]) -> None:
    for (proposal, _), read in zip(asked, runner.read([reading for _, reading in asked], depth=depth)):
        try:
            proposal.propose(read.hidden_SD, read.logits_SV)
        except BrokenLogits as error:
            proposal.count = proposal.depths = 0
            proposal.sequence.error = f"the logits of draft {len(proposal.tokens) + 1} are {error}"


def judge_drafts(
    logits_SV: Tensor, drafts: list[int], proposals: list[Tensor], rule: SamplingRule, generator: torch.Generator
) -> tuple[int, int]:
    """Return how many drafts stand, and the token that follows them.

    Args:
        logits_SV: the main model's, one row more than there are drafts; row j is what follows draft j.
    Raises:
        BrokenLogits: a row without a finite maximum.
    """
    chosen = find_likeliest(logits_SV)
    if rule.greedy:
        stand = next((j for j, draft in enumerate(drafts) if draft != chosen[j]), len(drafts))
        return stand, chosen[stand]
    target_SV = rule.probabilities(logits_SV)
    for j, draft in enumerate(drafts):
        luck = torch.rand((), generator=generator, device=generator.device)
        if not draft_stands(luck, target_SV[j, draft], proposals[j][draft]):
            return j, draw_token(what_is_missing(target_SV[j], proposals[j]), generator)
    return len(drafts), draw_token(target_SV[-1], generator)


def draft_stands(luck: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Keep a draft with probability min(1, p / q), given p, q and a number drawn evenly from [0, 1)."""
    return luck * source < target


def what_is_missing(target_V: Tensor, source_V: Tensor) -> Tensor:
    """Return the distribution that replaces a draft that fell: max(0, p - q), normalised over the last axis."""
    residual_V = (target_V - source_V).clamp_min_(0)
    mass = residual_V.sum(-1, keepdim=True)
    # p = q leaves nothing but rounding to draw from: then p itself is the distribution
    return torch.where(mass > 0, residual_V / mass, target_V)
