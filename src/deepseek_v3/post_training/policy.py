"""Answers as a batch, how likely the trainer finds their tokens, and the objective that learns from them.

    row i of a batch reads token i and is asked for log pi of token i + 1, where that one was written

Router replay: the sampler's choice of experts is taken over and the gates are computed again, from today's scores; they
carry what the router learns. Without it a token whose scores nearly tie is computed by other weights here than there,
and the ratio pi / pi_old compares two networks.

Letters: B answers, T tokens, S = T - 1 rows that predict, N = B S, M written tokens, V vocabulary, L layers with
experts, A experts per token.
Source: arXiv:2412.19437, section 5.2.2; router replay: arXiv:2510.11370. By hand: 07_post_training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.model.choices import routed_layers
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.losses import Answers, truncated_importance
from deepseek_v3.post_training.rollout import Rollout
from deepseek_v3.post_training.sft import count_real_tokens
from deepseek_v3.post_training.shared_prompts import read_written
from deepseek_v3.training.loss import IGNORED, LossParts
from deepseek_v3.training.schedule import Settings

PolicyLoss = Callable[[Tensor, Answers], Tensor]
FIELDS = ("tokens", "written", "sampler", "advantage", "old", "reference", "choices")


@dataclass(frozen=True)
class AnswerBatch:
    """Answers with what was known when they were written.

    Attributes:
        written: True in row i if token i + 1 was drawn.
        sampler: log pi of token i + 1, by the engine.
        old: the same by the trainer, at the same weights; None: by those of this very step.
        reference: the same by the reference model.
        choices: int16 [B, S, L, A], the sampler's experts.
        n_answers: of the whole step.
        facts: what the rollout has to tell; of the whole step too.
    """

    tokens: Tensor  # int64 [B, T]
    written: Tensor  # bool [B, S]
    sampler: Tensor  # [B, S]
    advantage: Tensor  # [B]
    old: Tensor | None = None  # [B, S]
    reference: Tensor | None = None  # [B, S]
    choices: Tensor | None = None
    n_answers: int = 0
    facts: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "AnswerBatch":
        found = {name: getattr(self, name) for name in FIELDS}
        return replace(self, **{name: change(value) for name, value in found.items() if value is not None})

    def part(self, start: int, stop: int) -> "AnswerBatch":
        """Return some answers; they still know how many the step has."""
        return replace(self._map(lambda tensor: tensor[start:stop]), n_answers=self.n_answers or len(self))

    def pick(self, order: Tensor) -> "AnswerBatch":
        """Return the answers in another order."""
        return self._map(lambda tensor: tensor[order])

    def to(self, device: torch.device | str) -> "AnswerBatch":
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def dump(self) -> dict[str, Any]:
        """Return what JSON can hold, every bit of it."""
        tensors = {name: None if (value := getattr(self, name)) is None else value.tolist() for name in FIELDS}
        return {**tensors, "facts": self.facts}

    @classmethod
    def load(cls, held: dict[str, Any]) -> "AnswerBatch":
        """Return what `dump` wrote."""
        kinds = {"tokens": torch.int64, "written": torch.bool, "choices": torch.int16}
        there = {name: held[name] for name in FIELDS if held[name] is not None}
        made = {name: torch.tensor(value, dtype=kinds.get(name, torch.float32)) for name, value in there.items()}
        return cls(**made, facts=held["facts"])  # type: ignore[arg-type]


def stack_answers(rollouts: Sequence[Rollout], advantage_B: Tensor, pad: int) -> AnswerBatch:
    """Lay answers out as a batch: prompt, answer, padding."""
    rows = [[*r.prompt, *r.tokens] for r in rollouts]
    shape = len(rows), max(map(len, rows))
    token_BT, written_BS = torch.full(shape, pad), torch.zeros(shape[0], shape[1] - 1, dtype=torch.bool)
    sampler_BS = torch.zeros(shape[0], shape[1] - 1)
    for b, (row, rollout) in enumerate(zip(rows, rollouts)):
        first = len(rollout.prompt) - 1  # this row drew the first token of the answer
        token_BT[b, : len(row)] = torch.tensor(row)
        written_BS[b, first : len(row) - 1] = True
        sampler_BS[b, first : len(row) - 1] = torch.tensor(rollout.logprobs)
    return AnswerBatch(token_BT, written_BS, sampler_BS, advantage_B.float(), choices=stack_choices(rollouts, shape[1]))


def stack_choices(rollouts: Sequence[Rollout], width: int) -> Tensor | None:
    """Lay the experts of all rows out; padding goes to the first ones, and nobody counts it."""
    first = rollouts[0].choices
    if first is None:
        return None
    _, layers, chosen = first.shape
    filler_A = torch.arange(chosen, dtype=torch.int16)
    choice_BSLA = filler_A.expand(len(rollouts), width - 1, layers, chosen).clone()
    for b, rollout in enumerate(rollouts):
        assert rollout.choices is not None
        choice_BSLA[b, : len(rollout.choices)] = rollout.choices
    return choice_BSLA


def real_rows(batch: AnswerBatch) -> Tensor:
    """Say which rows are no padding: all up to the last that wrote."""
    return batch.written.flip(1).cumsum(1).flip(1) > 0


def replay_record(model: DeepseekV3, batch: AnswerBatch, *, replay: bool, record: RoutingRecord) -> RoutingRecord:
    """Tell a record what the sampler chose, if it is to be replayed."""
    if replay and batch.choices is not None:
        for i, layer in enumerate(routed_layers(model.config)):
            record.replay[layer] = batch.choices[:, :, i].flatten(0, 1).long()
    return record


def score_written(
    model: DeepseekV3, batch: AnswerBatch, record: RoutingRecord, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log pi of every written token, 0 elsewhere [B, S], and the entropy of the rows that wrote them [M]."""
    logits_MV = model.lm_head(read_written(model, batch.tokens, batch.written, record))
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)) / temperature
    all_MV = logits_MV.log_softmax(-1)
    logp_M = all_MV.gather(1, batch.tokens[:, 1:][batch.written][:, None]).flatten()
    logp_BS = logp_M.new_zeros(batch.written.shape).masked_scatter(batch.written, logp_M)
    with torch.no_grad():
        entropy_M = -(all_MV.exp() * all_MV).sum(-1)
    return logp_BS, entropy_M


@torch.no_grad()
def score_in_pieces(model: DeepseekV3, batch: AnswerBatch, rows: int, temperature: float, *, replay: bool) -> Tensor:
    """Return log pi of every written token by a model that does not learn from it."""
    pieces = []
    for start in range(0, len(batch), rows):
        piece = batch.part(start, start + rows)
        record = replay_record(model, piece, replay=replay, record=RoutingRecord())
        pieces.append(score_written(model, piece, record, temperature)[0])
    return torch.cat(pieces)


@dataclass(frozen=True)
class PolicyGradient:
    """Learn from judged answers: an objective of the trainer.

    Attributes:
        loss: one of `losses.py`, its edges and weights filled in.
        clipped: of log-probabilities and answers, True where the clip has taken the gradient.
        importance: what tokens weigh at most; 0 weighs them alike.
    """

    loss: PolicyLoss
    clipped: Callable[[Tensor, Answers], Tensor]
    temperature: float = 1.0
    importance: float = 2.0
    replay: bool = True

    def labels(self, batch: AnswerBatch) -> Tensor:
        """Return the written tokens."""
        return torch.where(batch.written, batch.tokens[:, 1:], IGNORED)

    def __call__(self, model: DeepseekV3, batch: AnswerBatch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Score the written tokens and hand back this micro-batch's part of the loss."""
        replay_record(model, batch, replay=self.replay, record=record)
        logp_BS, entropy_M = score_written(model, batch, record, self.temperature)
        count_real_tokens(record, real_rows(batch), model)
        answers = self.describe(batch, logp_BS, settings.step_rows)
        rows = int(batch.written.sum())
        nats = -logp_BS.detach().sum()
        gap_BS = (logp_BS.detach() - batch.sampler).abs() * batch.written
        further = {
            "entropy": float(entropy_M.sum()),
            "clipped": float(self.clipped(logp_BS.detach(), answers).sum()),
            "sampler_gap": float(gap_BS.sum()),
        }
        return LossParts(self.loss(logp_BS, answers), nats, [], rows, [], further=further)

    def describe(self, batch: AnswerBatch, logp_BS: Tensor, n_tokens: int) -> Answers:
        """Return what the loss knows; on the very weights that wrote, old log-probabilities are today's, as numbers."""
        old_BS = logp_BS.detach() if batch.old is None else batch.old.to(logp_BS.dtype)
        weight_BS = truncated_importance(old_BS, batch.sampler, self.importance) if self.importance else None
        return Answers(
            batch.written,
            batch.advantage.to(logp_BS.dtype),
            old_BS,
            batch.reference,
            weight_BS,
            n_answers=batch.n_answers or len(batch),
            n_tokens=n_tokens,
        )


@torch.no_grad()
def measure_mismatch(model: DeepseekV3, batch: AnswerBatch, rows: int, temperature: float = 1.0) -> dict[str, float]:
    """Meter of what replay mends: who would choose other experts without it, and how far off the ratios would be.

    Returns:
        rerouted_tokens: share of tokens that go to other experts in at least one layer; rerouted: of tokens and layers.
        gap_replayed, gap_own: mean |log pi_trainer - log pi_sampler| of written tokens, with replay and without.
    """
    real_BS, layers = real_rows(batch), routed_layers(model.config)
    if batch.choices is None:
        return {}
    other, gaps = [], {True: 0.0, False: 0.0}
    for start in range(0, len(batch), rows):
        piece = batch.part(start, start + rows)
        for replay in (True, False):
            record = replay_record(model, piece, replay=replay, record=RoutingRecord())
            logp_BS, _ = score_written(model, piece, record, temperature)
            gaps[replay] += float(((logp_BS - piece.sampler).abs() * piece.written).sum())
        own_BSLA = torch.stack([record.choices[layer].unflatten(0, piece.written.shape) for layer in layers], 2)
        assert piece.choices is not None
        differs_BSL = (own_BSLA.sort(-1).values != piece.choices.long().sort(-1).values).any(-1)
        other.append(differs_BSL[real_rows(piece)])
    written, differs_NL = int(batch.written.sum()), torch.cat(other)
    assert len(differs_NL) == int(real_BS.sum())
    return {
        "rerouted_tokens": float(differs_NL.any(1).float().mean()),
        "rerouted": float(differs_NL.float().mean()),
        "gap_replayed": gaps[True] / written,
        "gap_own": gaps[False] / written,
    }
