"""The answers of a group are read behind their one question, which is read once; no answer sees another.

    question  answer 1  answer 2  ...        a token of answer j sees the question and what stands before it in answer j
    0 1 2 3   4 5 6     4 5 6                its position is that of a row of its own

With 16 short answers to each question this is a third of the tokens. Rows too wide for that are read one by one: there
the tokens that a mask hides would cost more than questions that are read again.

Letters: B answers, S rows that predict, N = B S, T = S + 1 tokens, P questions, F tokens of a question with its
answers, M written tokens, D width, A experts per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.model.cache import Within
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3

WIDEST = 256  # tokens of a question with its answers


class Folded(NamedTuple):
    """Answers laid behind their questions.

    Attributes:
        within: what every token sees, and its position.
        place_N: where the row (b, s) of the batch stands among the P F tokens; padding: anywhere.
        source: int64 [P F], which row of the batch each token stands for; padding: any.
    """

    tokens_PF: Tensor
    within: Within
    place_N: Tensor
    source: Tensor


def fold_answers(tokens_BT: Tensor, written_BS: Tensor) -> Folded | None:
    """Lay all answers to a question behind it; None where rows of their own are as cheap.

    Args:
        written_BS: True in row s if token s + 1 is of the answer, whose tokens stand behind each other.
    """
    batch, rows = written_BS.shape
    tokens, counts = tokens_BT.tolist(), written_BS.sum(1).clamp(min=1).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, last in enumerate(written_BS.int().argmax(1).tolist()):  # the question's last token asks for the answer
        groups.setdefault(tuple(tokens[b][: last + 1]), []).append(b)
    width = max(len(asked) + sum(counts[b] - 1 for b in members) for asked, members in groups.items())
    if width > WIDEST or len(groups) * width >= batch * rows:
        return None
    token_PF, owner_PF, position_PF = ([[fill] * width for _ in groups] for fill in (0, -1, 0))
    place, source = [[0] * rows for _ in range(batch)], [0] * (len(groups) * width)
    for p, (asked, members) in enumerate(groups.items()):
        pieces = [(0, members[0], 0, len(asked))]  # owner, answer, its rows from .. to
        pieces += [(j, b, len(asked), len(asked) + counts[b] - 1) for j, b in enumerate(members, 1)]
        at = 0
        for owner, b, first, end in pieces:
            here, there = slice(at, at + end - first), slice(p * width + at, p * width + at + end - first)
            token_PF[p][here], position_PF[p][here] = tokens[b][first:end], list(range(first, end))
            owner_PF[p][here] = [owner] * (end - first)
            source[there] = range(b * rows + first, b * rows + end)
            for sharer in members if owner == 0 else [b]:
                place[sharer][first:end] = range(there.start, there.stop)
            at += end - first
    lists = (token_PF, position_PF, owner_PF, place, source)
    token, position, owner_PF, place_BS, of = (torch.tensor(values, device=tokens_BT.device) for values in lists)
    return Folded(token, see_own_answer(owner_PF, position), place_BS.flatten(), of)


def see_own_answer(owner_PF: Tensor, position_PF: Tensor) -> Within:
    """Let a token see the question (owner 0) and its own answer, up to itself."""
    width = owner_PF.shape[1]
    causal_FF = torch.ones(width, width, dtype=torch.bool, device=owner_PF.device).tril()
    visible_PFF = (owner_PF[:, None, :] == 0) | (owner_PF[:, None, :] == owner_PF[:, :, None])
    return Within((visible_PFF & causal_FF).unsqueeze(1), position_PF)


def read_written(model: DeepseekV3, tokens_BT: Tensor, written_BS: Tensor, record: RoutingRecord) -> Tensor:
    """Return the hidden states [M, D] of the rows that wrote, in order; the record speaks of all rows of the batch."""
    folded = fold_answers(tokens_BT, written_BS)
    if folded is None:
        return model.hidden_states(tokens_BT[:, :-1], record=record)[written_BS]
    inner = RoutingRecord({layer: chosen_NA[folded.source] for layer, chosen_NA in record.replay.items()})
    hidden_PFD = model.hidden_states(folded.tokens_PF, record=inner, within=folded.within)
    for layer, chosen in inner.choices.items():
        record.choices[layer] = chosen[folded.place_N]
        record.counts[layer] = torch.bincount(record.choices[layer].flatten(), minlength=len(inner.counts[layer]))
        record.balance_losses[layer] = inner.balance_losses[layer]
    return hidden_PFD.flatten(0, 1)[folded.place_N[written_BS.flatten()]]
