"""Many processes that train one model: PyTorch's FSDP2 for the weights, an exchange of tokens for the experts.

    mesh [replicas, rest, ep]      a replica's dense weights are cut over rest x ep, its experts over ep, then over rest

Each process reads its rows of the one global batch, or a section of them (`section.py`). Losses are divided by the rows
of all, gradients are summed, so any number of processes makes the step of one. Every process enters every exchange:
what only one can know (it was told to stop, its loss is not finite, its disk is full) all agree on before they go on.

Started by torchrun; gloo on a CPU, NCCL on GPUs. Source: arXiv:2412.19437, section 3.2.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MethodType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from deepseek_v3.model.initialize import allocate
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Rows, Weights
from deepseek_v3.parallel.parts import PartsWriter, read_parts
from deepseek_v3.parallel.section import Sections
from deepseek_v3.parallel.shard import MeshError, cut_model, make_ways

Value = TypeVar("Value")


class Mesh:
    """One process of many; `leads` says whether it is the one that tells and writes."""

    def __init__(
        self, micro_batch: int, device: str = "cpu", *, ep: int = 1, pp: int = 1, replicas: int = 1, cp: int = 1
    ) -> None:
        """Meet the other processes.

        Raises:
            MeshError: what does not divide their number.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(device if device == "cpu" else f"{device}:{local}")
        if device != "cpu":
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            store, rank, _ = next(rendezvous("env://"))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # without it they would look for the dead
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            store = PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        self.micro_batch, self.pp, self.rank, self.world = micro_batch, pp, dist.get_rank(), world
        self.replicas, self.cp = replicas, cp
        self.leads, self.shares = self.rank == 0, world > 1
        self.here = replicas * int(os.environ.get("LOCAL_WORLD_SIZE", world)) / world
        self.saving = dist.new_group(backend="gloo") if self.shares else None
        self.ways = make_ways(device, world, pp=pp, ep=ep, replicas=replicas)
        self.sections = Sections(device, world, cp) if cp > 1 else None

    def close(self) -> None:
        """Leave together; after a success only."""
        dist.barrier()  # without it the end of one may abort another
        dist.destroy_process_group()

    # -- the model ---------------------------------------------------------------------------------------------------

    def place(self, model: Any, weights: Weights = ()) -> Any:
        """Cut the weights over the processes; all of them bring the same model.

        Args:
            weights: of a model on `meta`, the same in all processes: each keeps its part of one tensor after the other.
        Raises:
            MeshError: the experts cannot be shared equally.
        """
        self.model = model if next(model.parameters()).is_meta else model.to(self.device)
        cut_model(model, self.ways)
        allocate(model, lambda planned: torch.empty_like(planned, device=self.device))
        self.fill(model, weights)
        model.within = MethodType(lambda _, work: work(), model)  # type: ignore[assignment]
        register_fsdp_forward_method(model, "within")
        return model

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is cut over the processes as one."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a whole tensor, cut as another is, as a copy."""
        if not isinstance(like, DTensor) or tensor.dim() == 0:
            return tensor.to(self.device, copy=True)
        return distribute_tensor(tensor.to(self.device), like.device_mesh, like.placements, src_data_rank=None)

    def plain_model(self, model: Any) -> Any:
        """Return an unfilled model of the same config, in one piece."""
        with torch.device("meta"):
            return DeepseekV3(model.config).to_empty(device="cpu")

    @torch.no_grad()
    def whole_model(self, model: Any) -> Any:
        """Return the model in one piece."""
        plain, own = self.plain_model(model), {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, whole in [*plain.named_parameters(), *plain.named_buffers()]:
            if name in own:  # of a pipeline's other ranks
                whole.copy_(self.whole(own[name].detach()))
        return plain

    @torch.no_grad()
    def fill(self, model: Any, weights: Weights) -> None:
        """Keep this process's part of each weight."""
        cut = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        for name, whole in weights:
            if name in cut:  # of a pipeline's other ranks
                cut[name].copy_(self.part(whole, cut[name]))
            del whole  # before the next one comes

    def take(self, model: Any, plain: Any) -> None:
        """Take the weights of a model in one piece."""
        self.fill(model, [*plain.named_parameters(), *plain.named_buffers()])

    def stage(self, tensors: dict[str, Tensor], folder: Path) -> PartsWriter:
        """Copy what all processes will write into a folder, each its parts, beside whatever else they do."""
        assert isinstance(self.saving, dist.ProcessGroup)
        return PartsWriter(tensors, folder, self.saving)

    def read(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Fill tensors by their names from a folder of parts, each process what it holds of them."""
        read_parts(tensors, folder)

    def readable(self, model: Any) -> Any:
        """Return what held-out texts can be read with: the model, as all read the same."""
        return model

    def union(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the counts of all layers."""
        return counts

    # -- a step ------------------------------------------------------------------------------------------------------

    def rows(self, batch: Any) -> Any:
        """Return this process's share of a step's rows.

        Raises:
            MeshError: they cannot be shared equally.
        """
        readers = self.ways.readers.size() // self.cp
        if len(batch) % readers:
            raise MeshError(
                f"a batch of {len(batch)} rows cannot be shared by {readers} {self._readers()}; "
                f"give --batch-size (and --batch-size-start) a multiple of {readers}, and --micro-batch too"
            )
        share, mine = len(batch) // readers, self.ways.readers.get_local_rank() // self.cp
        batch = batch.part(mine * share, (mine + 1) * share).to(self.device)
        if self.sections is None:
            return batch
        return self.sections.cut(batch, self.model.config.num_nextn_predict_layers)

    def _readers(self) -> str:
        return "processes" if self.cp == 1 else f"groups of --cp {self.cp} processes"

    def accumulate(self, step: Callable[[Any], Any], batch: Rows, should_stop: Callable[[], bool]) -> list[Any] | None:
        """Forward and backward over the micro-batches; what one process must break off, all break off."""
        collected = []
        for start in range(0, len(batch), self.micro_batch):
            if self.any(should_stop()):
                return None
            micro = batch.part(start, min(len(batch), start + self.micro_batch))
            _, parts = self.model.within(lambda micro=micro: with_total(step(micro)))  # type: ignore[operator]
            collected.append(parts)
            if self.any(not math.isfinite(float(parts.total.detach()))):
                self.model.reshard()  # type: ignore[operator]
                break
            parts.total.backward()
        return collected

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up over all processes that read other rows."""
        return self._add(tensor, self.ways.readers.get_group())

    def _add(self, tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        return bool(self._add(torch.tensor(int(flag), device=self.device)))

    def agree(self, value: Value) -> Value:
        """Return what the leading process says."""
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Cut the whole gradient to a norm, over all processes and ways of cutting; return the norm that it had."""
        grads = [_local(p.grad) for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if self.world > 1:  # every number of the gradient lies in one process of each replica
            norm = (self._add(norm.double() ** 2) / self.replicas).sqrt().float()
        if grads:  # none, if the first loss of the step was no number
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                grads, torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            )
        return float(norm)


def leave(code: int) -> NoReturn:
    """End a process of many at once, with this exit code.

    PyTorch's caches keep groups beyond their end. A thread of gloo that gives back its last tensor while the
    interpreter is taken apart waits for a lock that is gone, and aborts: rare, on a busy machine, after all was done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_total(parts: Any) -> tuple[Tensor, Any]:
    """Show FSDP the tensor that will be differentiated: it looks into tuples."""
    return parts.total, parts
