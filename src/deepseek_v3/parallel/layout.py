"""Where a step runs: which rows this process takes, how it accumulates them, and what is added up over all.

    layout.place(model)    .rows(batch)    .accumulate(step, batch)    .sum(tensor)    .clip(parameters, norm)

`Solo` is one process with micro-batches in turn.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Value = TypeVar("Value")
Weights = Iterable[tuple[str, Tensor]]  # by name, each in one piece, one after the other


class Rows(Protocol):
    """A batch that can be cut and moved."""

    def __len__(self) -> int: ...
    def part(self, start: int, stop: int) -> Any: ...
    def to(self, device: torch.device) -> Any: ...


class Layout(Protocol):
    """What the update of a training asks of its processes."""

    device: torch.device
    here: float  # of a model's numbers, how many models' worth the processes of this machine hold
    leads: bool  # whether this process tells and writes; one of them does
    shares: bool  # whether each process writes its part of a checkpoint

    def place(self, model: Model, weights: Weights = ()) -> Model:
        """Bring the model to where it runs; before an optimizer is built over its parameters.

        Args:
            weights: of a model on `meta`, which many processes allocate once it is cut; without, nothing is filled in.
        """
        ...

    def rows(self, batch: Any) -> Any:
        """Return this process's rows of a step's batch, on its device."""
        ...

    def accumulate(self, step: Callable[[Any], Any], batch: Any, should_stop: Callable[[], bool]) -> list[Any] | None:
        """Run `step` over the micro-batches of these rows and differentiate the `total` of what it returns.

        Returns:
            what `step` returned, one a micro-batch, up to a total that is not finite; None if it was told to stop.
        """
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up over all processes that read other rows."""
        ...

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Cut the whole gradient to a norm; return the norm that it had."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process: what one must do, all do."""
        ...

    def agree(self, value: Any) -> Any:
        """Return what the leading process says."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor in one piece."""
        ...

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a whole tensor, cut as another is, as a copy."""
        ...

    def plain_model(self, model: Model) -> Model:
        """Return a model in one piece to read weights into, for `take`."""
        ...

    def whole_model(self, model: Model) -> Model:
        """Return the model in one piece."""
        ...

    def take(self, model: Model, plain: Model) -> None:
        """Take over the weights of a model in one piece."""
        ...

    def readable(self, model: Model) -> Model:
        """Return what held-out texts can be read with; all processes read the same."""
        ...

    def union(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return counts by layer of all layers, wherever they live."""
        ...

    def close(self) -> None:
        """Leave the others, after a success."""
        ...


def led(layout: Layout, work: Callable[[], Value], kind: type[Exception]) -> Value | None:
    """Let the leading process do something; what it is refused, all are, as `kind`, and nobody waits for anybody.

    Returns:
        what it gave the leading process; None in the others.
    """
    value, problem = None, None
    if layout.leads:
        try:
            value = work()
        except (ValueError, OSError) as error:
            problem = error
    said = layout.agree(None if problem is None else str(problem))
    if said is not None:
        raise problem or kind(said)
    return value


class Solo:
    """One process: micro-batches in turn, nothing to add up with anybody."""

    here, leads, shares = 1.0, True, False

    def __init__(self, micro_batch: int, device: torch.device | str = "cpu") -> None:
        self.micro_batch, self.device = micro_batch, torch.device(device)

    def place(self, model: Model, weights: Weights = ()) -> Model:
        """Move the model, which is filled, to the device."""
        return model.to(self.device)

    def rows(self, batch: Rows) -> Rows:
        """Return all rows, on the device."""
        return batch.to(self.device)

    def accumulate(self, step: Callable[[Any], Any], batch: Rows, should_stop: Callable[[], bool]) -> list[Any] | None:
        """Forward and backward over the micro-batches, one after the other."""
        collected = []
        for start in range(0, len(batch), self.micro_batch):
            if should_stop():
                return None
            parts = step(batch.part(start, start + self.micro_batch))
            collected.append(parts)
            if not math.isfinite(float(parts.total.detach())):
                break
            parts.total.backward()
        return collected

    def sum(self, tensor: Tensor) -> Tensor:
        """Return it as it is."""
        return tensor

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Clip by PyTorch's norm of all gradients; where it is small enough they are not written again, times one."""
        parameters = list(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm + 1e-6 <= max_norm:  # also of a norm that is no number
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def any(self, flag: bool) -> bool:
        """Return it as it is."""
        return flag

    def agree(self, value: Any) -> Any:
        """Return it as it is."""
        return value

    def whole(self, tensor: Tensor) -> Tensor:
        """Return it as it is."""
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a copy beside the other."""
        return tensor.to(like.device, copy=True)

    def plain_model(self, model: Model) -> Model:
        """Return the model itself."""
        return model

    def whole_model(self, model: Model) -> Model:
        """Return the model itself."""
        return model

    def take(self, model: Model, plain: Model) -> None:
        """Do nothing: it is the model itself."""

    def readable(self, model: Model) -> Model:
        """Return the model."""
        return model

    def union(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return them as they are."""
        return counts

    def close(self) -> None:
        """Do nothing."""
