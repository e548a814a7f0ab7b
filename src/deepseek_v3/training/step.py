"""One update, from a batch to moved weights and routing biases.

    losses and gradients of all micro-batches -> clip -> AdamW -> biases by the step's loads -> averaged weights

A step whose loss or gradient is not finite changes nothing; nor does one that is told to stop half-way.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Layout
from deepseek_v3.training.balance import LoadCounter, max_violation, shares_of
from deepseek_v3.training.loss import IGNORED, LossParts
from deepseek_v3.training.objective import Objective
from deepseek_v3.training.optimizer import AveragedWeights, set_learning_rate
from deepseek_v3.training.results import StepResult, summarise_step
from deepseek_v3.training.schedule import Settings


@dataclass
class Update:
    """Whatever a step needs besides its batch.

    Attributes:
        autocast: entered around each forward pass.
        byte_length: bytes of text that each token stands for, on the layout's device.
    """

    model: DeepseekV3
    optimizer: torch.optim.Optimizer
    objective: Objective
    layout: Layout
    counter: LoadCounter
    averaged: AveragedWeights | None
    autocast: Callable[[], AbstractContextManager]
    byte_length: Tensor
    clip_norm: float

    def run(self, batch: Any, settings: Settings, should_stop: Callable[[], bool]) -> StepResult | None:
        """Do one step; None if it was told to stop, and then nothing has changed."""
        batch = self.layout.rows(batch)
        labels_BS = self.objective.labels(batch)
        rows = self.layout.sum((labels_BS != IGNORED).sum())
        settings = settings._replace(step_rows=max(1, int(rows)))
        set_learning_rate(self.optimizer, settings.lr)
        self.counter.reset()
        try:
            parts = self.layout.accumulate(Reading(self, settings), batch, should_stop)
            if parts is None:
                return None
            norm = self.layout.clip(self.model.parameters(), self.clip_norm)
            result = summarise_step(labels_BS, parts, settings, norm, self.byte_length, self.layout.sum)
            if result.applied:
                self.optimizer.step()
                self.counter.sum_over(self.layout.sum)
                self.counter.move_biases(settings.bias_speed)
                counts = self.layout.union(self.counter.counts)
                result.loads, result.max_vio = shares_of(counts), max_violation(counts.values())
                if self.averaged:
                    self.averaged.update(self.model)
            return result
        finally:
            self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Reading:
    """The forward pass of a micro-batch in one step, and its pieces for a layout that runs it in stages."""

    update: Update
    settings: Settings

    def __call__(self, batch: Any) -> LossParts:
        """Run the forward pass of a micro-batch and count its loads."""
        record = RoutingRecord()
        parts = self.read(batch, record)
        self.note(record)
        return parts

    def read(self, batch: Any, record: RoutingRecord) -> LossParts:
        """Run it; the record is told where its tokens went."""
        with self.autocast():
            return self.update.objective(self.update.model, batch, record, self.settings)

    def note(self, record: RoutingRecord) -> None:
        """Count the loads of a micro-batch."""
        self.update.counter.add(record)

    def autocast(self) -> AbstractContextManager:
        """Return what a forward pass is wrapped in."""
        return self.update.autocast()

    def balance(self, batch: Any, record: RoutingRecord) -> Tensor:
        """Return the balance loss of the layers that the record knows."""
        return self.update.objective.balance(batch, record, self.settings)  # type: ignore[attr-defined]  # pretraining
