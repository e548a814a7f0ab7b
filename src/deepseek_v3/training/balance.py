"""Loss-free balancing: after each step an expert's bias moves by gamma, up if it got too few tokens, else down.

    b_i += gamma sign(mean(c) - c_i)          c over the whole step: all micro-batches, all ranks

The MTP modules have routers too, and theirs move alike. The bias is no parameter and has no gradient; nothing moves
outside `move_biases`, so evaluation leaves it alone.

    MaxVio = (max_i c_i - mean(c)) / mean(c)            0 is perfect balance

Source: arXiv:2412.19437, section 2.1.2; arXiv:2408.15664, Algorithm 1 and Eq. (4).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.router import Router, RoutingRecord


def find_routers(model: nn.Module) -> dict[int, Router]:
    """Return the routers by layer, as a RoutingRecord has them: those of the MTP modules come last."""
    found = {module.layer: module.gate for module in model.modules() if isinstance(module, MixtureOfExperts)}
    return dict(sorted(found.items()))


class LoadCounter:
    """Adds up where the tokens of one step went."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = find_routers(model)
        self.counts: dict[int, Tensor] = {}

    def reset(self) -> None:
        """Begin a step."""
        self.counts = {}

    def add(self, record: RoutingRecord) -> None:
        """Add a micro-batch.

        Raises:
            ValueError: the record lacks a layer (was the model called without mtp=True?).
        """
        if missing := self.routers.keys() - record.counts.keys():
            raise ValueError(f"the record lacks layers {sorted(missing)}, which have experts")
        for layer in self.routers:
            self.counts[layer] = self.counts.get(layer, 0) + record.counts[layer]

    def sum_over(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add the other processes' counts where several train together."""
        self.counts = {layer: add(count) for layer, count in self.counts.items()}

    @torch.no_grad()
    def move_biases(self, speed: float) -> None:
        """Apply the sign rule to every router that has a bias."""
        for layer, count_E in self.counts.items():
            router = self.routers[layer]
            if router.sigmoid and speed:
                load_E = count_E.to(router.e_score_correction_bias.dtype)
                router.e_score_correction_bias += speed * torch.sign(load_E.mean() - load_E)


def shares_of(counts: dict[int, Tensor]) -> list[list[float]]:
    """Return each layer's part of the tokens per expert, times the number of experts: 1 is the fair share."""
    return [[round(x, 4) for x in (c * len(c) / c.sum().clamp(min=1)).tolist()] for c in counts.values()]


def max_violation(counts: Iterable[Tensor]) -> float:
    """Return MaxVio averaged over layers; 0 without experts."""
    loads = [count.double() for count in counts]
    return sum(float((c.max() - c.mean()) / c.mean().clamp(min=1e-9)) for c in loads) / max(1, len(loads))
