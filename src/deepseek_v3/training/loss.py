"""The pre-training loss: next token, further tokens, balance.

    L = L_main + lambda / depths sum_k L_k + alpha sum_layers L_balance
    L_k = -(1 / T) sum_i log P_i^k [t_{i+1+k}]           k = 0 is the main model; T - k rows, divided by T all the same

Row i of depth k reads tokens up to i + k and is scored on token i + 1 + k. It counts only if row and target lie in one
document: documents are contiguous, so nothing between them lies elsewhere either.

Letters: B batch, S positions, V vocabulary.
Source: arXiv:2412.19437, Eqs. (17) to (20) and (24), (25).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deepseek_v3.model.head import IGNORED, sum_nats


@dataclass(frozen=True)
class LossParts:
    """Sums over one micro-batch, so that micro-batches and ranks add up.

    Attributes:
        total: what to differentiate: this micro-batch's share of the step's loss.
        main_nats: sum of -log P over main rows that count; mtp_nats: the same per depth.
        main_rows, mtp_rows: how many rows counted.
        balance: what the balance loss adds to `total`.
        further: what else an objective tells, each a sum over the main rows that counted.
    """

    total: Tensor
    main_nats: Tensor
    mtp_nats: list[Tensor]
    main_rows: int
    mtp_rows: list[int]
    balance: float = 0.0
    further: dict[str, float] = field(default_factory=dict)


def make_labels(tokens: Tensor, documents: Tensor, depth: int) -> Tensor:
    """Return the labels [B, S] of a depth from rows of S + 1 tokens; IGNORED where a row does not count.

    Row i of depth k has the target i + 1 + k; the last k rows have none, for their input token is the window's last.
    """
    reach = 1 + depth
    labels_BS = torch.full_like(tokens[:, :-1], IGNORED)
    same_document = documents[:, reach:] == documents[:, :-reach]
    labels_BS[:, : tokens.shape[1] - reach] = torch.where(same_document, tokens[:, reach:], IGNORED)  # V3 Eq. (24)
    return labels_BS


def pretraining_loss(
    hidden_BSD: Tensor,
    mtp_hiddens: list[Tensor],
    head: nn.Module,
    tokens: Tensor,
    documents: Tensor,
    *,
    mtp_weight: float,
    step_rows: int,
    balance_losses: Iterable[Tensor] = (),
    balance_alpha: float = 0.0,
    balance_share: float = 1.0,
    columns: slice = slice(None),
) -> LossParts:
    """Add up the losses of one micro-batch.

    Args:
        hidden_BSD, mtp_hiddens: the model's on `tokens[:, :-1]`: `hidden_states` and `mtp_hidden_states`.
        head: the one that all depths share.
        tokens, documents: [B, S + 1], as `data.packing` gives them.
        step_rows: T of the whole step: main rows that count, over all micro-batches (and ranks).
        balance_losses: with alpha = 1, one a layer.
        balance_share: the micro-batch's part of the step's sequences.
        columns: of the rows, those that were read here.
    """
    return score_depths(
        hidden_BSD,
        mtp_hiddens,
        head,
        [make_labels(tokens, documents, k)[:, columns] for k in range(len(mtp_hiddens) + 1)],
        mtp_weight=mtp_weight,
        step_rows=step_rows,
        balance=balance_alpha * balance_share * sum(balance_losses, start=hidden_BSD.new_zeros(())),  # V3 Eq. (17)
    )


def score_depths(
    hidden_BSD: Tensor,
    mtp_hiddens: list[Tensor],
    head: nn.Module,
    labels: list[Tensor],
    *,
    mtp_weight: float,
    step_rows: int,
    balance: Tensor,
) -> LossParts:
    """Add up the losses of one micro-batch by the labels [B, S] of every depth, the main model's first."""
    main_nats = sum_nats(head, hidden_BSD, labels[0])
    mtp_nats = [sum_nats(head, depth_BSD, depth_labels) for depth_BSD, depth_labels in zip(mtp_hiddens, labels[1:])]
    total = main_nats / step_rows
    for nats in mtp_nats:
        total = total + mtp_weight / len(mtp_nats) * nats / step_rows  # V3 Eq. (25)
    counts = [int((label != IGNORED).sum()) for label in labels]
    return LossParts(
        total + balance,
        main_nats.detach(),
        [nats.detach() for nats in mtp_nats],
        counts[0],
        counts[1:],
        float(balance.detach()),
    )
