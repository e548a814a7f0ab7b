"""What a step minimises: from a model and some rows to the loss and its parts.

    parts = objective(model, batch, record, settings)        parts.total is what is differentiated

An objective of another kind of training (fine-tuning, rewards) has the same form.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek_v3.data.packing import Batch
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.section import columns_of
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.loss import LossParts, make_labels, pretraining_loss
from deepseek_v3.training.schedule import Settings


class Objective(Protocol):
    """What a training minimises."""

    def labels(self, batch: Any) -> Tensor:
        """Return what the main rows are scored on, [B, S]: over the whole step, its loss is divided by their number."""
        ...

    def __call__(self, model: DeepseekV3, batch: Any, record: RoutingRecord, settings: Settings) -> LossParts:
        """Return a micro-batch's share of the step's loss; the record is told where its tokens went."""
        ...


@dataclass(frozen=True)
class Pretraining:
    """Next token, further tokens, balance (`training/loss.py`)."""

    balance_alpha: float

    def labels(self, batch: Batch) -> Tensor:
        """Return the next token of every row that has one in its document."""
        return make_labels(batch.tokens, batch.documents, 0)[:, columns_of(batch.section)]

    def balance(self, batch: Batch, record: RoutingRecord, settings: Settings) -> Tensor:
        """Return the balance loss of some layers, as `__call__` adds it up for all."""
        losses = sum(record.balance_losses.values(), start=torch.zeros((), device=batch.tokens.device))
        return self.balance_alpha * (len(batch) / settings.rows) * losses

    def __call__(self, model: DeepseekV3, batch: Batch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Run the model on all tokens but the last of each row, or a section of them, and score every depth."""
        inputs_BS, section = batch.tokens[:, :-1], batch.section
        if section is not None:
            record.add = section.add
        hidden_BSD = model.hidden_states(inputs_BS[:, columns_of(section)], record=record, within=section)
        ahead_BS = inputs_BS[:, columns_of(section, ahead=len(model.mtp))]
        return pretraining_loss(
            hidden_BSD,
            model.mtp_hidden_states(ahead_BS, hidden_BSD, record, section),
            model.lm_head,
            batch.tokens,
            batch.documents,
            mtp_weight=settings.mtp_weight,
            step_rows=settings.step_rows,
            balance_losses=record.balance_losses.values(),
            balance_alpha=self.balance_alpha,
            balance_share=len(batch) / settings.rows,
            columns=columns_of(section),
        )
