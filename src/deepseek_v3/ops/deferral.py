"""Gradients of weights that are put off: a backward pass makes those of inputs, and the weights' when somebody asks.

    with defer_weights() as queue:
        y = linear(x, weight)           notes the queue
        y.backward(dy)                  makes dx, and leaves the weight's part in the queue
        part = queue.take()
        part()                          later, in the gap of a pipeline: now the weight has its gradient

Between the two a product keeps dy, and what it reads of the forward pass. Products written by hand do it; PyTorch's own
split of a backward pass runs each of them twice (docs/decisions.md).

Source: arXiv:2412.19437, section 3.2.1, backward for input and backward for weights; arXiv:2401.10241 (zero bubble).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class WeightQueue:
    """Weights' parts of backward passes that have been, in their order."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def take(self) -> Callable[[], None]:
        """Return what waits, as one piece of work; from now on nothing does."""
        taken, self.waiting = self.waiting, []
        taken.reverse()

        def run() -> None:
            while taken:
                taken.pop()()  # and lets go of what it has read

        return run


_open: list[WeightQueue] = []


@contextmanager
def defer_weights() -> Iterator[WeightQueue]:
    """Put weights' parts off for whatever goes forth in here; its backward passes may come later too."""
    _open.append(WeightQueue())
    try:
        yield _open[-1]
    finally:
        _open.pop()


class Later(NamedTuple):
    """The weights of a product, as the graph knows them, and where their part will wait."""

    queue: WeightQueue
    weights: tuple[Tensor, ...]

    def put_off(self, work: Callable[[], Sequence[Tensor]]) -> None:
        """Let this make the gradients of the weights when it is asked for; they are added to what is there."""

        def run() -> None:
            with torch.no_grad():
                grads = work()
            torch.autograd.backward(self.weights, grads)

        self.queue.waiting.append(run)


def find_later(x: Tensor, *weights: Tensor) -> Later | None:
    """Return where the part of these weights will wait; None where nothing is put off.

    A product that has one gets its weights without their gradients (`detach`), and calls `put_off` as it goes back.
    """
    if not _open or not torch.is_grad_enabled() or not all(t.requires_grad for t in (x, *weights)):
        return None
    return Later(_open[-1], weights)


def cut_off(later: Later | None, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return the weights for a product: cut from the graph if their part is put off."""
    return weights if later is None else tuple(weight.detach() for weight in weights)
