"""Supervised fine-tuning: cross-entropy on the tokens of answers and on no others, dialogues packed into rows.

    labels[i] = token[i + 1 + k]  where that token is of an answer and of row i's dialogue      (depth k; 0: the model)

Three things decide whether it is right, and none of them crashes when it is wrong. The mask belongs to the token that
is predicted. Dialogues that share a row do not see each other (`sample_mask`; positions need not begin anew, since a
rotation knows distances only). And the sum is divided once, by the answer tokens of the whole step.

Letters: B rows, S rows that predict, T = S + 1 tokens.
Source: arXiv:2412.19437, section 5.1 (packed with sample masking). By hand: 07_post_training/supervised_fine_tuning.py.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek_v3.data.documents import DataError
from deepseek_v3.model.cache import Within
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.post_training.dialogues import Dialogue
from deepseek_v3.training.balance import find_routers
from deepseek_v3.training.loss import IGNORED, LossParts, make_labels, score_depths
from deepseek_v3.training.schedule import Settings

POOL = 1024  # dialogues that are packed together: more fit better, and take longer


@dataclass(frozen=True)
class DialogueBatch:
    """Rows of dialogues.

    Attributes:
        documents: the number of each token's dialogue within its row; -1 for padding.
        answers: True for a token that is to be learned.
    """

    tokens: Tensor  # int64 [B, T]
    documents: Tensor  # int64 [B, T]
    answers: Tensor  # bool [B, T]

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "DialogueBatch":
        """Return some rows."""
        return DialogueBatch(self.tokens[start:stop], self.documents[start:stop], self.answers[start:stop])

    def to(self, device: torch.device | str) -> "DialogueBatch":
        """Return the batch on a device."""
        return DialogueBatch(self.tokens.to(device), self.documents.to(device), self.answers.to(device))


def plan_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put dialogues into rows: the longest first, each into the first row with room; none is cut.

    Raises:
        ValueError: a dialogue is longer than a row.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[number]
        if need > room:
            raise ValueError(f"dialogue {number} has {need} tokens, a row only {room}; lengthen the rows or drop it")
        home = next((i for i, free in enumerate(left) if free >= need), None)
        if home is None:
            home = len(rows)
            rows.append([])
            left.append(room)
        rows[home].append(number)
        left[home] -= need
    return rows


def stack_rows(rows: Sequence[Sequence[Dialogue]], pad: int) -> DialogueBatch:
    """Lay rows of dialogues out as a batch, as wide as the fullest."""
    width = max(sum(len(d.tokens) for d in row) for row in rows)
    shape = len(rows), max(2, width)
    batch = DialogueBatch(torch.full(shape, pad), torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool))
    for b, row in enumerate(rows):
        start = 0
        for number, dialogue in enumerate(row):
            place = slice(start, start := start + len(dialogue.tokens))
            batch.tokens[b, place] = torch.tensor(dialogue.tokens)
            batch.answers[b, place] = torch.tensor(dialogue.answers)
            batch.documents[b, place] = number
    return batch


class DialogueStream:
    """An endless, shuffled stream of rows; its whole state is an epoch and a row of it."""

    def __init__(
        self, dialogues: Sequence[Dialogue], row_tokens: int, pad: int, *, seed: int = 0, pack: bool = True
    ) -> None:
        if not dialogues:
            raise DataError("there is no dialogue to learn from")
        self.dialogues, self.row_tokens, self.pad, self.seed, self.pack = dialogues, row_tokens, pad, seed, pack
        contents = hashlib.sha256()
        for dialogue in dialogues:
            contents.update(np.array([*dialogue.tokens, -1, *dialogue.answers], np.int64).tobytes())
        self.identity = [len(dialogues), row_tokens, seed, pack, contents.hexdigest()]
        self.epoch, self.row = 0, 0
        self._rows = self._order(0)

    def next_batch(self, n_rows: int) -> DialogueBatch:
        """Return the next rows."""
        chosen = []
        while len(chosen) < n_rows:
            if self.row == len(self._rows):
                self.epoch, self.row = self.epoch + 1, 0
                self._rows = self._order(self.epoch)
            chosen.append([self.dialogues[i] for i in self._rows[self.row]])
            self.row += 1
        return stack_rows(chosen, self.pad)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands."""
        return {"epoch": self.epoch, "row": self.row, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a stream over the same dialogues stood.

        Raises:
            DataError: it was another stream.
        """
        if state["identity"] != self.identity:
            raise DataError("the dialogues or how they are packed changed since the checkpoint; give the same again")
        if state["epoch"] != self.epoch:
            self._rows = self._order(state["epoch"])
        self.epoch, self.row = state["epoch"], state["row"]

    def _order(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.dialogues)).tolist()
        if not self.pack:
            return [[i] for i in order]
        rows: list[list[int]] = []
        for start in range(0, len(order), POOL):
            pool = order[start : start + POOL]
            planned = plan_rows([len(self.dialogues[i].tokens) for i in pool], self.row_tokens)
            rows += [[pool[i] for i in row] for row in planned]
        return [rows[i] for i in rng.permutation(len(rows))]


class FreshDialogues(DialogueStream):
    """Dialogues that are drawn as they are needed: every epoch has others, and none is learned by heart."""

    def __init__(
        self, draw: Callable[[int], Sequence[Dialogue]], name: str, row_tokens: int, pad: int, *, seed: int, pack: bool
    ) -> None:
        """Begin with epoch 0.

        Args:
            draw: returns the dialogues of an epoch, always the same ones.
            name: of what is drawn; a stream of another name does not go on with this one's state.
        """
        self.draw, self.drawn = draw, 0
        super().__init__(draw(0), row_tokens, pad, seed=seed, pack=pack)
        self.identity = [0, row_tokens, seed, pack, name]

    def _order(self, epoch: int) -> list[list[int]]:
        if epoch != self.drawn:
            self.dialogues, self.drawn = self.draw(epoch), epoch
        return super()._order(epoch)


def answer_labels(batch: DialogueBatch, depth: int = 0) -> Tensor:
    """Return the labels [B, S] of a depth: tokens of answers, in the dialogue of the row that predicts them."""
    reach = 1 + depth
    learned_BS = torch.zeros_like(batch.answers[:, :-1])
    learned_BS[:, : max(0, batch.tokens.shape[1] - reach)] = batch.answers[:, reach:]
    return torch.where(learned_BS, make_labels(batch.tokens, batch.documents, depth), IGNORED)


def see_own_dialogue(batch: DialogueBatch, *, sample_mask: bool) -> Within | None:
    """Return what every input token may see; None where no row holds two dialogues, or they may see each other."""
    documents_BS = batch.documents[:, :-1]
    return Within.documents(documents_BS) if sample_mask and bool((documents_BS > 0).any()) else None


def real_inputs(batch: DialogueBatch) -> Tensor:
    """Say which inputs count: those that a token of their own dialogue follows, however the rows are packed."""
    documents_BT = batch.documents
    return (documents_BT[:, :-1] >= 0) & (documents_BT[:, 1:] == documents_BT[:, :-1])


def count_real_tokens(record: RoutingRecord, real_BS: Tensor, model: DeepseekV3) -> None:
    """Take padding out of the load counts; layers that did not run have sent nobody anywhere."""
    layers = model.config.num_hidden_layers
    for layer, router in find_routers(model).items():
        experts = len(router.weight)
        if layer not in record.counts:
            record.counts[layer] = torch.zeros(experts, dtype=torch.int64, device=real_BS.device)
            continue
        ahead = max(0, layer - layers + 1)  # a module reads a token further on
        real_BR = real_BS[:, : real_BS.shape[1] - ahead] & real_BS[:, ahead:]
        record.counts[layer] = torch.bincount(record.choices[layer][real_BR.flatten()].flatten(), minlength=experts)


@dataclass(frozen=True)
class FineTuning:
    """Next token and further tokens of answers: an objective of the trainer."""

    sample_mask: bool = True

    def labels(self, batch: DialogueBatch) -> Tensor:
        """Return the tokens of answers that follow each row."""
        return answer_labels(batch)

    def __call__(self, model: DeepseekV3, batch: DialogueBatch, record: RoutingRecord, settings: Settings) -> LossParts:
        """Run the model within dialogues and score every depth on answers."""
        inputs_BS, within = batch.tokens[:, :-1], see_own_dialogue(batch, sample_mask=self.sample_mask)
        hidden_BSD = model.hidden_states(inputs_BS, record=record, within=within)
        ahead = model.mtp_hidden_states(inputs_BS, hidden_BSD, record, within) if settings.mtp_weight else []
        count_real_tokens(record, real_inputs(batch), model)
        return score_depths(
            hidden_BSD,
            ahead,
            model.lm_head,
            [answer_labels(batch, depth) for depth in range(len(ahead) + 1)],
            mtp_weight=settings.mtp_weight,
            step_rows=settings.step_rows,
            balance=hidden_BSD.new_zeros(()),
        )


@torch.no_grad()
def measure_answers(model: DeepseekV3, batches: Iterable[DialogueBatch], *, sample_mask: bool) -> tuple[float, int]:
    """Return the nats of all answer tokens, and how many there are."""
    nats, count = 0.0, 0
    for batch in batches:
        within = see_own_dialogue(batch, sample_mask=sample_mask)
        labels_BS = answer_labels(batch)
        nats += float(model.lm_head.sum_nats(model.hidden_states(batch.tokens[:, :-1], within=within), labels_BS))
        count += int((labels_BS != IGNORED).sum())
    return nats, count
