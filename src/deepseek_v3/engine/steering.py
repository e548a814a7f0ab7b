"""What is done to logits before a token is chosen: bias, penalties, and the mask of a grammar.

    logit[v] += bias[v]
    logit[v] = logit[v] / r if logit[v] > 0 else logit[v] * r      for every v of the prompt or the text    (repetition)
    logit[v] -= presence * (n[v] > 0) + frequency * n[v]           n[v]: how often v stands in the text so far
    logit[v] = -inf                                                where the grammar cannot go on with v

Under speculation each row is steered as if the drafts before it were text, so that what is drawn with drafts follows
the same rule as without. The modules' own logits are steered alike: a draft that is sure to fall is not made.

Letters: S rows, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepseek_v3.engine.grammar import Constraint


@dataclass(frozen=True)
class Steering:
    """Penalties and bias of a request; as they stand here they change nothing.

    Attributes:
        repetition_penalty: divides positive logits of tokens of the prompt and the text, multiplies negative ones.
        presence_penalty: taken from the logit of every token of the text, once.
        frequency_penalty: taken from it as often as the token stands in the text.
        logit_bias: added to the logit of a token.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be a positive number; 1 is none")
        if not math.isfinite(self.presence_penalty + self.frequency_penalty):
            said = f"presence_penalty={self.presence_penalty} and frequency_penalty={self.frequency_penalty}"
            raise ValueError(f"{said} must be finite numbers; 0 is none")
        for token, bias in self.logit_bias.items():
            if not math.isfinite(bias):
                raise ValueError(f"logit_bias of token {token} is {bias}; it must be a finite number, -100 bans")

    @property
    def penalises(self) -> bool:
        """Whether the text so far matters."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


class Steerer:
    """Steers the logits of one sequence; remembers of its tokens what that takes.

    Attributes:
        made_V: how often each token stands in the text.
        prompt_V: whether it stands in the prompt.
    """

    def __init__(
        self, steering: Steering, grammar: Constraint | None, prompt: Sequence[int], vocab: int, device: torch.device
    ) -> None:
        self.steering, self.grammar = steering, grammar
        self.biased = torch.tensor(list(steering.logit_bias), dtype=torch.int64, device=device)
        self.bias = torch.tensor(list(steering.logit_bias.values()), dtype=torch.float32, device=device)
        if steering.penalises:
            self.made_V = torch.zeros(vocab, device=device)
            self.prompt_V = torch.zeros(vocab, dtype=torch.bool, device=device)
            self.prompt_V[list(prompt)] = True

    def steer(self, logits_SV: Tensor, drafts: Sequence[int]) -> Tensor:
        """Return steered logits: the last row comes behind all drafts, the row before it behind all but one, ..."""
        logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32), copy=True)
        if len(self.biased):
            logits_SV[:, self.biased] += self.bias.to(logits_SV.dtype)
        first = len(drafts) + 1 - len(logits_SV)  # drafts that already the first row comes behind
        if self.steering.penalises:
            logits_SV = self._penalise(logits_SV, drafts, first)
        if self.grammar is not None:
            allowed_SV = self.grammar.allowed(drafts, first).to(logits_SV.device)
            logits_SV = logits_SV.masked_fill_(~allowed_SV, -math.inf)
        return logits_SV

    def _penalise(self, logits_SV: Tensor, drafts: Sequence[int], first: int) -> Tensor:
        made_SV = self.made_V.repeat(len(logits_SV), 1)
        for i, draft in enumerate(drafts):
            made_SV[max(0, i + 1 - first) :, draft] += 1
        present_SV, penalty = made_SV > 0, self.steering.repetition_penalty
        if penalty != 1:
            punished_SV = torch.where(logits_SV > 0, logits_SV / penalty, logits_SV * penalty)
            logits_SV = torch.where(present_SV | self.prompt_V, punished_SV, logits_SV)
        less_SV = self.steering.presence_penalty * present_SV + self.steering.frequency_penalty * made_SV
        return logits_SV - less_SV

    def take(self, token: int) -> bool:
        """Count a token that has become text; return whether the grammar is complete, so that nothing can follow."""
        if self.steering.penalises:
            self.made_V[token] += 1
        return self.grammar is not None and self.grammar.take(token)
