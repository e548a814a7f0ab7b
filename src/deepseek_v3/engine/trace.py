"""What a training wants to know of a text that the engine wrote: each drawn token, how likely it was, and its experts.

    sequence = engine.admit(Request(tokens, trace=True, ...))        ... until sequence.finish
    sequence.trace.tokens       what was drawn, the stop token too, which is no text
    sequence.trace.logprobs     log pi of each, by the distribution that it was drawn from
    sequence.trace.choices      [tokens read, layers, A] if the engine records choices

Letters: S rows, V vocabulary, A experts per token.
"""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from deepseek_v3.engine.sampler import SamplingRule


class Trace:
    """Of one sequence."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.choices: Tensor | None = None

    def note(self, logits_SV: Tensor, tokens: Rows[int], rule: SamplingRule) -> None:
        """Note tokens that were drawn by the first rows, one each; greedy ones by the model's own distribution."""
        at_SV = logits_SV[: len(tokens)] / (rule.temperature or 1.0)
        drawn_S1 = torch.tensor(tokens, device=logits_SV.device)[:, None]
        self.add(tokens, at_SV.log_softmax(-1).gather(1, drawn_S1).flatten().tolist())

    def add(self, tokens: Rows[int], logprobs: Rows[float]) -> None:
        """Note tokens with their log pi."""
        self.tokens += tokens
        self.logprobs += logprobs
