"""Rollouts: the engine writes several answers to each prompt, on the trainer's own weights, and how likely each was.

    writer = Writer(model, stop_tokens=tokenizer.stop_ids, max_new_tokens=8, choices=True)
    rollouts = writer.write(prompts, group=16, temperature=1.0, seed=7)

Drafting by the multi-token prediction modules changes the speed and not the distribution. The engine reads the weights
where they lie, so a step of the optimizer is seen at once; what it has read before is forgotten by `refresh`.

Letters: T tokens, L layers with experts, A experts per token.
"""

import copy
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.generate import run_out
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.fp8.decode import dequantize_weight
from deepseek_v3.fp8.quantize import quantize_weight
from deepseek_v3.model.transformer import DeepseekV3

BLOCK = 4  # tokens of a block of the cache: small, so that the answers of a group share most of their question
MOST_ROWS = 512  # answers that are written side by side


class Rollout(NamedTuple):
    """One answer.

    Attributes:
        tokens: what was drawn, the stop token too.
        logprobs: log pi of each, by the engine.
        choices: int16 [T - 1, L, A], the experts of all tokens but the last; None where they were not recorded.
        ended: whether it came to its end, by a stop token.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    choices: Tensor | None
    ended: bool

    @property
    def text_tokens(self) -> list[int]:
        """What was written, without the stop token."""
        return self.tokens[:-1] if self.ended else self.tokens


def run_rollouts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    group: int,
    *,
    rule: SamplingRule,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    seed: int,
    drafts: int = 0,
) -> list[Rollout]:
    """Let an engine write `group` answers to every prompt, those of a prompt behind each other.

    Raises:
        BrokenLogits: logits that are no numbers.
    """
    ask = {"rule": rule, "max_new_tokens": max_new_tokens, "drafts": drafts, "stop_tokens": stop_tokens, "trace": True}
    requests = [Request(list(prompt), seed=seed + i * group, **ask) for i, prompt in enumerate(prompts)]
    sequences = [sequence for request in requests for sequence in engine.admit_copies(request, group)]
    for _ in run_out(engine):
        pass
    return [_collect(sequence) for sequence in sequences]


def _collect(sequence) -> Rollout:
    trace = sequence.trace
    prompt = sequence.tokens[: sequence.prompt]
    return Rollout(prompt, trace.tokens, trace.logprobs, trace.choices, sequence.finish == "stop")


def mix_seed(*parts: object) -> int:
    """Return a number of 48 bits for some parts: seeds of different steps do not overlap."""
    return random.Random(" ".join(map(str, parts))).getrandbits(48)


class Writer:
    """The engine on a model that is being trained.

    Attributes:
        model: what writes: the trainer's own, or a copy of it in another number format.
    """

    def __init__(
        self,
        model: DeepseekV3,
        *,
        stop_tokens: Collection[int],
        max_new_tokens: int,
        choices: bool = False,
        drafts: int = 0,
        number_format: str = "fp32",
    ) -> None:
        self.trained, self.number_format = model, number_format
        self.model = model if number_format == "fp32" else copy.deepcopy(model)
        if number_format == "bf16":
            self.model.to(torch.bfloat16)
        self.stop_tokens, self.max_new_tokens = tuple(stop_tokens), max_new_tokens
        self.choices, self.drafts = choices, min(drafts, len(model.mtp) and drafts)
        self._engine: Engine | None = None
        self._slots, self._rows = 0, 0

    def write(self, prompts: Sequence[Sequence[int]], group: int, *, temperature: float, seed: int) -> list[Rollout]:
        """Return `group` answers to every prompt by today's weights; temperature 0 takes the likeliest tokens."""
        self._follow()
        engine = self._open(max(map(len, prompts)), min(MOST_ROWS, len(prompts) * group))
        return run_rollouts(
            engine,
            prompts,
            group,
            rule=SamplingRule(temperature=temperature),
            max_new_tokens=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            seed=seed,
            drafts=self.drafts,
        )

    @torch.no_grad()
    def _follow(self) -> None:
        """Take over the trainer's weights: rounded, where the copy is of another format."""
        if self.model is self.trained:
            return
        buffers = dict(self.trained.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        weights = dict(self.trained.named_parameters())
        for name, weight in self.model.named_parameters():
            weight.copy_(round_to_fp8(weights[name], name) if self.number_format == "fp8" else weights[name])

    def _open(self, longest: int, rows: int) -> Engine:
        """Return the engine, large enough; what it has read by other weights is forgotten."""
        slots = longest + self.max_new_tokens + self.drafts + 1
        if self._engine is None or slots > self._slots or rows > self._rows:
            self._slots, self._rows = slots, rows = max(slots, self._slots), max(rows, self._rows)
            options = EngineOptions(
                n_blocks=rows * -(-slots // BLOCK),
                block_size=BLOCK,
                step_tokens=max(64, rows * max(BLOCK, 1 + self.drafts)),
                max_rows=rows,
                modules=self.drafts,
                record_choices=self.choices,
            )
            self._engine = Engine(self.model, options)
        else:
            self._engine.refresh()
        return self._engine


def round_to_fp8(weight: Tensor, name: str) -> Tensor:
    """Return the numbers that FP8 keeps of a matrix of the layers, in blocks of 128 x 128; others as they are."""
    outside = ("embed", "lm_head", "mlp.gate.weight")
    if weight.dim() < 2 or any(part in name for part in outside):
        return weight
    halves = 2 if name.endswith("gate_up_proj") else 1  # gate above up: no block holds rows of both
    matrices = weight.detach().reshape(-1, weight.shape[-2] // halves, weight.shape[-1])
    kept = [dequantize_weight(*quantize_weight(matrix.contiguous()), torch.float32) for matrix in matrices]
    return torch.stack(kept).view(weight.shape)
