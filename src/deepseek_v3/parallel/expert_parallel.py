"""Experts spread over processes: each token travels to the process that holds its expert, and its result back.

    sort the pairs (token, expert) by expert -> counts to everybody -> tokens and gates to everybody
    -> the experts that live here -> results back -> each token adds up its own

Every process enters every exchange, also one that has no tokens for anybody: the others would wait for good.

In FP8 training the codes of tokens and of their gradients travel out, a byte a number and four for each 128, and
results travel back in BF16: the numbers are those of one process, bit by bit (`ops/fp8_experts.py`).

Letters: N tokens, A experts per token, E experts, L of them here, P = N * A pairs, M pairs received, D width.
Source: arXiv:2412.19437, section 3.2.2; what is sent between nodes there is counted in chapter 08.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from deepseek_v3.ops.fp8_experts import Delivery, Route
from deepseek_v3.ops.grouped import sort_by_expert


class ExpertExchange:
    """The exchange of one group of processes, which hold the experts in equal parts, in their order.

    Attributes:
        sent_bytes: what deliveries have sent to other processes so far.
    """

    def __init__(self, group: dist.ProcessGroup, experts: int) -> None:
        self.group, self.size, self.experts = group, dist.get_world_size(group), experts
        self.sent_bytes = 0

    def __call__(
        self, run: Callable[[Tensor, Tensor, Tensor], Tensor], x_ND: Tensor, weight_NA: Tensor, index_NA: Tensor
    ) -> Tensor:
        """Send each token through its experts, wherever they live, and add them up by weight, [N, D].

        Args:
            run: the experts that are here, on rows of one expert each, counted from the first that is here.
        """
        local, per_token = self.experts // self.size, index_NA.shape[1]
        expert_P = index_NA.flatten()
        order_P = expert_P.argsort(stable=True)
        sent_E = torch.bincount(expert_P, minlength=self.experts)
        received_RL = self._exchange_counts(sent_E).view(self.size, local)
        sent, received = sent_E.view(self.size, local).sum(1).tolist(), received_RL.sum(1).tolist()
        token_P = order_P // per_token
        x_MD = self._exchange(x_ND[token_P], received, sent)
        weight_M = self._exchange(weight_NA.flatten()[order_P], received, sent)
        index_M = torch.arange(local, device=x_ND.device).repeat(self.size).repeat_interleave(received_RL.flatten())
        y_MD = run(x_MD, weight_M[:, None], index_M[:, None])
        y_PD = self._exchange(y_MD, sent, received)
        back_P = torch.empty_like(order_P)
        back_P[order_P] = torch.arange(len(order_P), device=order_P.device)
        return y_PD[back_P].unflatten(0, (-1, per_token)).sum(1)

    def deliver(self, index_NA: Tensor) -> Delivery:
        """Plan the way of FP8 codes to the experts, in every direction; for `ops.experts_in_fp8`."""
        plan, local = sort_by_expert(index_NA, self.experts), self.experts // self.size
        sent_E = torch.tensor(plan.counts, device=index_NA.device)
        received_RL = self._exchange_counts(sent_E).view(self.size, local)
        sent, received = sent_E.view(self.size, local).sum(1).tolist(), received_RL.sum(1).tolist()
        expert_M = (
            torch.arange(local, device=index_NA.device).repeat(self.size).repeat_interleave(received_RL.flatten())
        )
        ways = partial(self._move, received, sent), partial(self._move, sent, received)
        route = Route(tuple(received_RL.sum(0).tolist()), *ways)
        return Delivery(plan.token_M, plan.row_NA, expert_M.argsort(stable=True), route)

    def _move(self, received: list[int], sent: list[int], rows: Tensor) -> Tensor:
        """Rows of bytes of everybody for this process, in the order of the processes."""
        mine = dist.get_rank(self.group)
        self.sent_bytes += (sum(sent) - sent[mine]) * rows.shape[1]
        moved = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(moved, rows.contiguous(), received, sent, group=self.group)
        return moved

    def _exchange_counts(self, sent_E: Tensor) -> Tensor:
        received = torch.empty_like(sent_E)
        dist.all_to_all_single(received, sent_E, group=self.group)
        return received

    def _exchange(self, x: Tensor, received: list[int], sent: list[int]) -> Tensor:
        """Rows of everybody for this process, in the order of the processes; has a gradient."""
        moved = collectives.all_to_all_single_autograd(x.contiguous(), received, sent, self.group)
        return collectives.wait_tensor(moved) if isinstance(moved, collectives.AsyncCollectiveTensor) else moved
