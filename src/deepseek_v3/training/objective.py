"""What a step minimises: from a model and some rows to the loss and its parts.

    parts = objective(model, batch, record, settings)        parts.total is what is differentiated

An objective of another kind of training (fine-tuning, rewards) has the same form.
"""

from dataclasses import dataclass
from typing import Protocol

from deepseek_v3.data.packing import Batch
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.loss import IGNORED, LossParts, make_labels, pretraining_loss
from deepseek_v3.training.schedule import Settings


class Objective(Protocol):
    """What a training minimises."""

    def count_rows(self, batch: Batch) -> int:
        """Return how many rows count: over the whole step they are what its loss is divided by."""
        ...

    def __call__(self, model: DeepseekV3, batch: Batch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Return a micro-batch's share of the step's loss; the record is told where its tokens went."""
        ...


@dataclass(frozen=True)
class Pretraining:
    """Next token, further tokens, balance (`training/loss.py`)."""

    balance_alpha: float

    def count_rows(self, batch: Batch) -> int:
        """Return the main rows that have a target in their document."""
        return int((make_labels(batch.tokens, batch.documents, 0) != IGNORED).sum())

    def __call__(self, model: DeepseekV3, batch: Batch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Run the model on all tokens but the last of each row, and score every depth."""
        inputs_BS = batch.tokens[:, :-1]
        hidden_BSD = model.hidden_states(inputs_BS, record=record)
        return pretraining_loss(
            hidden_BSD,
            model.mtp_hidden_states(inputs_BS, hidden_BSD, record),
            model.lm_head,
            batch.tokens,
            batch.documents,
            mtp_weight=settings.mtp_weight,
            step_rows=settings.step_rows,
            balance_losses=record.balance_losses.values(),
            balance_alpha=self.balance_alpha,
            balance_share=len(batch) / settings.rows,
        )
