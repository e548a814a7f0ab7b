"""AdamW as the report sets it, the clip of the gradient, and an average of the weights.

Weight decay 0.1 falls on matrices (embedding, head, experts, routers), not on the gains of norms: the report states the
number, not the set; a gain pulled towards 0 only fights the next matrix.

Source: arXiv:2412.19437, section 4.2 (betas 0.9 and 0.95, decay 0.1, clip 1.0) and section 3.2.3 (averaged weights).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepseek_v3.training.options import TrainOptions


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Return AdamW with two groups: matrices decay, vectors do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.adam_eps, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class AveragedWeights:
    """An exponential moving average of the parameters, kept beside the model: a preview of the annealed weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model by 1 - decay."""
        for name, p in model.named_parameters():
            self.shadow[name].lerp_(p, 1 - self.decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Lend the averaged weights to the model for the length of a `with` block."""
        kept: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._copy(model, self.shadow)
        try:
            yield
        finally:
            self._copy(model, kept)

    @staticmethod
    @torch.no_grad()
    def _copy(model: nn.Module, values: dict[str, Tensor]) -> None:
        for name, p in model.named_parameters():
            p.copy_(values[name])


def moments_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors as `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`."""
    tensors = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{key}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `moments_by_name` returned."""
    for name, p in model.named_parameters():
        state = {
            key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
        }
        if state:
            optimizer.state[p] = {key: value.to(p.device, copy=True) for key, value in state.items()}
