"""Speculative decoding with the multi-token prediction modules: draft cheaply, verify in one pass.

    known tokens t_0 .. t_n-1, of which the main model has read all but the last
    draft    module k reads (h^{k-1}_i, t_{i+k}) at position i; its last row, i = n - 2, predicts token n - 1 + k
    verify   the main model reads t_n-1 and the drafts at positions n - 1, n, ...; row j judges draft j + 1
    accept   draft d with probability min(1, p(d) / q(d)); the first rejected one is replaced by a draw from
             max(0, p - q), normalised; when all are accepted, one more token is drawn from the last row

What comes out is distributed exactly as without drafts, and greedy it is the same tokens. A module's row stays in its
cache only if all its inputs are known tokens; a row that was fed a draft is cut off, and read again once it is known.

Letters: D width, V vocabulary, S rows.
Source: arXiv:2412.19437, sections 2.2 and 5.4.3; the rule of acceptance is that of arXiv:2211.17192.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek_v3.engine.sampler import SamplingRule, draw_token
from deepseek_v3.model.cache import LatentCache

# (depth from 0, hidden_BSD, tokens_BS, the module's cache) -> (hidden_BSD, logits_BV of the last row)
ReadModule = Callable[[int, Tensor, Tensor, LatentCache], tuple[Tensor, Tensor]]


class Drafter:
    """The chain of MTP modules, each with its cache, for one sequence.

    Attributes:
        waiting: for each module the hidden row that it was handed too early: its token is not known for good yet.
    """

    def __init__(self, read_module: ReadModule, caches: list[LatentCache]) -> None:
        self.read_module, self.caches = read_module, caches
        self.waiting: list[Tensor | None] = [None] * len(caches)

    def draft(
        self, hidden_BSD: Tensor, known: list[int], count: int, rule: SamplingRule, generator: torch.Generator
    ) -> tuple[list[int], list[Tensor]]:
        """Propose `count` tokens after the known ones; return them with the distributions [V] they were drawn from.

        Args:
            hidden_BSD: the main model's normed hidden states of the positions that it has read since the last call.
            known: every token so far; the main model has read all but the last.
            count: at least 1; may shrink from call to call, as a generation ends, but not grow.
        """
        n, depths = len(known), min(count, len(self.caches))
        drafts: list[int] = []
        proposals: list[Tensor] = []
        rows: list[tuple[int, Tensor]] = []
        for depth in range(depths):
            cache, early = self.caches[depth], self.waiting[depth]
            if early is not None:
                hidden_BSD = torch.cat((early, hidden_BSD), 1)
            start = cache.lengths[0]
            rows.append((start, hidden_BSD))
            ahead = [*known, *drafts][start + depth + 1 : n + depth]  # row i of module k reads token i + k
            tokens_BS = torch.tensor([ahead], device=hidden_BSD.device)
            hidden_BSD, logits_BV = self.read_module(depth, hidden_BSD, tokens_BS, cache)
            propose(logits_BV[0], drafts, proposals, rule, generator)
        for _ in range(count - depths):  # further than the modules go: the last one reads on from its own output
            tokens_BS = torch.tensor([[drafts[-1]]], device=hidden_BSD.device)
            hidden_BSD, logits_BV = self.read_module(depths - 1, hidden_BSD[:, -1:], tokens_BS, self.caches[depths - 1])
            propose(logits_BV[0], drafts, proposals, rule, generator)
        for depth, (start, hidden_BSD) in enumerate(rows):
            keep, handed = max(0, n - 1 - depth), max(0, n - depth)
            self.waiting[depth] = hidden_BSD[:, keep - start : handed - start]
            self.caches[depth].truncate([keep])
        return drafts, proposals


def propose(
    logits_V: Tensor, drafts: list[int], proposals: list[Tensor], rule: SamplingRule, generator: torch.Generator
) -> None:
    """Draw one draft by the same rule as the real tokens, and remember from what."""
    if rule.greedy:  # judged by equality alone
        drafts.append(int(logits_V.argmax()))
        return
    proposals.append(rule.probabilities(logits_V))
    drafts.append(draw_token(proposals[-1], generator))


def judge_drafts(
    logits_SV: Tensor, drafts: list[int], proposals: list[Tensor], rule: SamplingRule, generator: torch.Generator
) -> tuple[int, int]:
    """Return how many drafts stand, and the token that follows them.

    Args:
        logits_SV: the main model's, one row more than there are drafts; row j is what follows draft j.
    """
    if rule.greedy:
        chosen = logits_SV.argmax(-1).tolist()
        stand = next((j for j, draft in enumerate(drafts) if draft != chosen[j]), len(drafts))
        return stand, chosen[stand]
    target_SV = rule.probabilities(logits_SV)
    for j, draft in enumerate(drafts):
        luck = torch.rand((), generator=generator, device=generator.device)
        if luck * proposals[j][draft] >= target_SV[j, draft]:  # kept with probability min(1, p / q)
            residual_V = (target_SV[j] - proposals[j]).clamp_min_(0)
            mass = residual_V.sum()
            # p = q leaves nothing but rounding to draw from: then p itself is the distribution
            return j, draw_token(residual_V / mass if mass > 0 else target_SV[j], generator)
    return len(drafts), draw_token(target_SV[-1], generator)
