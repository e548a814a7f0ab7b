"""Layers spread over a pipeline, on PyTorch's own DualPipeV, with the MTP modules in it.

    mesh [pp, world / pp / ep, ep]          V of two ranks:  rank 0: stages 0 and 3       rank 1: stages 1 and 2

A rank holds two stages: its own, and the one that faces it in the V. So the first and the last meet on rank 0, and the
MTP modules, which belong to the last, share embedding and head as they do in one process. Each rank keeps its part of
the one model, cut over the processes that hold the same layers, as without a pipeline (`shard.py`).

The balance loss of a stage in the middle is added where its activations leave it: it is differentiated with them, and
nothing but activations travels. Where the order has a backward pass in two parts, the first makes the gradients of
inputs, for which the stage before waits, and the second those of weights (`ops/deferral.py`). Weights are gathered once
a step and stay, with their gradients, which are summed over the processes when the last part is done.

Source: arXiv:2412.19437, section 3.2.1; DualPipeV: the repository deepseek-ai/DualPipe.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV

from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.ops.deferral import WeightQueue, defer_weights
from deepseek_v3.parallel.layout import Weights
from deepseek_v3.parallel.mesh import Mesh, with_total
from deepseek_v3.parallel.shard import MeshError, keep_gathered, sum_gradients
from deepseek_v3.parallel.stages import Stage, split_layers, stages_of_rank


class AddLoss(torch.autograd.Function):
    """Hand activations on; in the backward pass a loss of their own is differentiated with them."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, loss: Tensor) -> Tensor:  # type: ignore[override]
        """Return the activations."""
        ctx.like = loss.detach()
        return x_BSD.view_as(x_BSD)

    @staticmethod
    def backward(ctx: Any, dx_BSD: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Hand the gradient on, and 1 to the loss."""
        return dx_BSD, torch.ones_like(ctx.like)


class StageRun(nn.Module):
    """What PyTorch's engine calls as a stage; the weights lie in the rank's one model."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, given: Tensor) -> Tensor:
        """Run the stage on the next micro-batch."""
        return self.run(given)


class Pipeline(Mesh):
    """One process of a mesh that has a pipeline."""

    queue: WeightQueue  # of the step that runs

    def place(self, model: Any, weights: Weights = ()) -> Any:
        """Keep this rank's layers of the model that all bring, and cut them.

        Args:
            weights: of a whole model on `meta`.
        Raises:
            MeshError: more stages than layers, or experts that cannot be shared equally.
        """
        c = model.config
        try:
            stages = split_layers(c.num_hidden_layers, c.num_nextn_predict_layers, 2 * self.pp)
        except ValueError as error:
            raise MeshError(str(error)) from None
        self.numbers = stages_of_rank(self.ways.line.get_local_rank(), self.pp, 2)
        self.stages = [stages[i] for i in self.numbers]
        self.schedules: dict[tuple[int, ...], ScheduleDualPipeV] = {}
        keep_stages(model, self.stages)
        super().place(model, weights)
        model.set_reshard_after_forward(False)
        model.hidden_states = self._finish_hidden
        return model

    # -- a step ------------------------------------------------------------------------------------------------------

    def accumulate(self, step: Any, batch: Any, should_stop: Callable[[], bool]) -> list[Any] | None:
        """Run all micro-batches forth and back through the pipeline.

        Args:
            step: a `training.step.Reading`.
        Raises:
            MeshError: too few micro-batches, or rows that do not divide into them.
        """
        if self.any(should_stop()):
            return None
        count = self._count_micro_batches(len(batch))
        self.reading, self.balance, self.parts = step, 0.0, []
        self.micro = [batch.part(i * self.micro_batch, (i + 1) * self.micro_batch) for i in range(count)]
        self.records = [[RoutingRecord() for _ in range(count)] for _ in self.stages]
        self.done = [0 for _ in self.stages]
        inputs_BS = batch.tokens[:, :-1]
        ends = any(stage.last for stage in self.stages)
        keep_gathered(self.model)  # type: ignore[arg-type]
        with warnings.catch_warnings(), defer_weights() as self.queue:
            warnings.simplefilter("ignore")
            self._schedule(count, inputs_BS.shape[1]).step(
                *([inputs_BS] if ends else []), target=batch.tokens if ends else None, losses=[], return_outputs=False
            )
        sum_gradients(self.model)  # type: ignore[arg-type]
        for records in zip(*self.records):
            whole = RoutingRecord()
            for record in records:
                whole.counts |= record.counts
            step.note(whole)
        return self._tell_parts()

    def _count_micro_batches(self, rows: int) -> int:
        if rows % self.micro_batch or rows // self.micro_batch < 2 * self.pp:
            least = 2 * self.pp * self.micro_batch * self.ways.readers.size()
            raise MeshError(
                f"--pp {self.pp} needs {2 * self.pp} micro-batches of {self.micro_batch} rows or more for a process, "
                f"here are {rows} rows; give --batch-size (and --batch-size-start) a multiple of "
                f"{self.micro_batch * self.ways.readers.size()}, of {least} at least"
            )
        return rows // self.micro_batch

    def _schedule(self, count: int, length: int) -> ScheduleDualPipeV:
        """Make the order of a step, once; shapes are told, for to find them costs a forward pass that would count."""
        if (count, length) in self.schedules:
            return self.schedules[count, length]

        def shape(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(sizes, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

        flow = shape(self.micro_batch, length, self.model.config.hidden_size)
        tokens = shape(self.micro_batch, length, dtype=torch.int64)
        made = [
            PipelineStage(
                StageRun(lambda given, at=at: self._run_stage(at, given)),
                number,
                2 * self.pp,
                self.device,
                input_args=(tokens if stage.first else flow,),
                output_args=(shape() if stage.last else flow,),
                group=self.ways.line.get_group(),
                dw_builder=lambda: self.queue.take(),  # after a pass for inputs; run when the order has its W
            )
            for at, (number, stage) in enumerate(zip(self.numbers, self.stages))
        ]
        schedule = ScheduleDualPipeV(made, count, loss_fn=lambda total, _: total, scale_grads=False)  # type: ignore[arg-type]
        self.schedules[count, length] = schedule
        return schedule

    def _run_stage(self, at: int, given: Tensor) -> Tensor:
        """Run a stage on its next micro-batch: they come in their order."""
        i, stage = self.done[at], self.stages[at]
        self.done[at] += 1
        self.given, micro, record = given, self.micro[i], self.records[at][i]
        if stage.last:
            _, parts = self.model.within(lambda: with_total(self.reading.read(micro, record)))
            self.parts.append(parts)
            return parts.total
        x_BSD, balance = self.model.within(lambda: self._run_middle(stage, micro, record))
        self.balance += float(balance.detach())
        return AddLoss.apply(x_BSD, balance)  # type: ignore[return-value]

    def _run_middle(self, stage: Stage, micro: Any, record: RoutingRecord) -> tuple[Tensor, Tensor]:
        with self.reading.autocast():
            return self._run_layers(stage, record), self.reading.balance(micro, record)

    def _run_layers(self, stage: Stage, record: RoutingRecord | None) -> Tensor:
        x_BSD = self.model.embed_tokens(self.given) if stage.first else self.given
        rotation, _ = self.model.place_tokens(x_BSD.shape[1], None)
        for i in stage.layers:
            x_BSD = self.model.layers[str(i)](x_BSD, rotation, record=record)
        return x_BSD

    def _finish_hidden(self, tokens_BS: Tensor, *, record: RoutingRecord | None = None, within: None = None) -> Tensor:
        """Stand in for the model's `hidden_states`: the last stage, on what reached it."""
        return self.model.norm(self._run_layers(self.stages[-1], record))

    def _tell_parts(self) -> list[Any]:
        """Tell all ranks of the pipeline what the last stage has found, and add up the balance of all."""
        group = self.ways.line.get_group()
        more = torch.tensor(self.balance, dtype=torch.float64, device=self.device)
        dist.all_reduce(more, group=group)
        parts = [dataclasses.replace(p, total=p.total.detach()) for p in self.parts]
        said = [parts]
        dist.broadcast_object_list(said, group=group, group_src=0)
        first, *rest = said[0]
        first = dataclasses.replace(first, total=first.total + more, balance=first.balance + float(more))
        return [first, *rest]

    # -- all of it ---------------------------------------------------------------------------------------------------

    def union(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Put the counts of all ranks of the pipeline together, by layer."""
        found: list[Any] = [None] * self.pp
        dist.all_gather_object(found, counts, group=self.ways.line.get_group())
        return dict(sorted({layer: count for each in found for layer, count in each.items()}.items()))

    @torch.no_grad()
    def readable(self, model: Any) -> Any:
        """Return the model in one piece, in every process: held-out texts are read without the pipeline."""
        plain, own = self.plain_model(model), {**dict(model.named_parameters()), **dict(model.named_buffers())}
        group = self.ways.line.get_group()
        held: list[Any] = [None] * self.pp
        dist.all_gather_object(held, list(own), group=group)
        for name, whole in [*plain.named_parameters(), *plain.named_buffers()]:
            holder = next(rank for rank, names in enumerate(held) if name in names)
            if name in own:
                whole.copy_(self.whole(own[name].detach()))
            dist.broadcast(whole.data, group=group, group_src=holder)
        return plain


def keep_stages(model: DeepseekV3, stages: list[Stage]) -> None:
    """Drop what other ranks hold; what stays keeps its name."""
    kept = {str(i): model.layers[i] for stage in stages for i in stage.layers}
    model.layers = nn.ModuleDict(kept)  # type: ignore[assignment]
    if not any(stage.first for stage in stages):
        model.embed_tokens = None  # type: ignore[assignment]
    if not any(stage.last for stage in stages):
        model.norm = model.lm_head = None  # type: ignore[assignment]
        model.mtp = nn.ModuleList()
