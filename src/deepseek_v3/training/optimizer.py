"""AdamW as the report sets it, the clip of the gradient, and an average of the weights.

Weight decay 0.1 falls on matrices (embedding, head, experts, routers), not on the gains of norms: the report states the
number, not the set; a gain pulled towards 0 only fights the next matrix.

Source: arXiv:2412.19437, section 4.2 (betas 0.9 and 0.95, decay 0.1, clip 1.0) and section 3.2.3 (averaged weights).
"""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from deepseek_v3.training.options import TrainOptions

MOMENTS = torch.bfloat16  # of ShortMomentsAdamW


class ShortMomentsAdamW(torch.optim.AdamW):
    """AdamW that keeps its two moments in BF16, as the report: each update computes in FP32, then rounds them.

    Args:
        round_weights: also round the weights to BF16 after each update. No training wants it: it shows what FP32 master
            weights are for.
    """

    def __init__(self, groups: list[dict[str, Any]], *, round_weights: bool = False, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.round_weights = round_weights

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=MOMENTS)
        kept = state["exp_avg"], state["exp_avg_sq"]
        wide = [moment.float() for moment in kept]
        beta1, beta2 = group["betas"]
        adamw(
            [p], [grad], [wide[0]], [wide[1]], [], [state["step"]], fused=True, amsgrad=False, beta1=beta1,
            beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        for moment, exact in zip(kept, wide):
            moment.copy_(exact)
        if self.round_weights:
            p.copy_(p.bfloat16())


def build_optimizer(model: nn.Module, options: TrainOptions, precision: str = "fp32") -> torch.optim.AdamW:
    """Return AdamW with groups: matrices decay, vectors do not.

    Args:
        precision: of the products; by it the moments' format is chosen, if the options leave that open.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    ways = list(dict.fromkeys(getattr(p, "device_mesh", None) for p in parameters))  # to cut them over processes
    groups = [
        {"params": [p for p in parameters if getattr(p, "device_mesh", None) == way and matrix == (p.dim() >= 2)],
         "weight_decay": options.weight_decay if matrix else 0.0}
        for matrix in (True, False) for way in ways
    ]  # fmt: skip
    groups = [group for group in groups if group["params"] or len(ways) == 1]
    settings: dict[str, Any] = {"lr": options.lr, "betas": (options.beta1, options.beta2), "eps": options.adam_eps}
    if options.moments == "bf16" or (options.moments == "auto" and precision == "fp8"):
        return ShortMomentsAdamW(groups, round_weights=options.fp8_variant == "bf16-weights", **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


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

    @torch.no_grad()
    def restore(self, model: nn.Module, tensors: dict[str, Tensor], part: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take what was kept, cut by `part`; where nothing was, the model's weights."""
        for name, value in self.shadow.items():
            kept, like = tensors.get(f"averaged.{name}"), model.get_parameter(name).detach()
            value.copy_(like if kept is None else part(kept, like))

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
def empty_moments(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Container[str]) -> dict[str, Tensor]:
    """Give the optimizer room for the moments that are `stored`, cut as their parameters are; return it by name."""
    kept = MOMENTS if isinstance(optimizer, ShortMomentsAdamW) else None
    for name, p in model.named_parameters():
        if f"exp_avg.{name}" in stored:
            moments = {key: torch.zeros_like(p, dtype=kept or p.dtype) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.zeros((), device=p.device), **moments}
    return moments_by_name(model, optimizer)


@torch.no_grad()
def restore_moments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    part: Callable[[Tensor, Tensor], Tensor] = lambda tensor, like: tensor.to(like.device, copy=True),
) -> None:
    """Put back what `moments_by_name` returned, in the format that the optimizer keeps.

    Args:
        part: cuts a whole tensor as another is cut.
    """
    kept = MOMENTS if isinstance(optimizer, ShortMomentsAdamW) else None
    for name, p in model.named_parameters():
        state = {
            key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
        }
        if state:
            optimizer.state[p] = {
                key: part(value, p).to(value.dtype if key == "step" else kept or p.dtype)
                for key, value in state.items()
            }
