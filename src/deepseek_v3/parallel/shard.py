"""How weights are cut over processes: FSDP2 for all, and stacks of experts first by expert parallelism.

    mesh [pipeline, replicas, rest, experts]
        dense weights are cut over rest x experts, experts over experts, then over rest; each replica holds all of them

The cut itself needs no number: on the meta device, in a process group that only pretends, it says what each process of
thousands would hold (`rehearsal.py`).
"""

from typing import NamedTuple

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from deepseek_v3.model.block import Block
from deepseek_v3.model.moe import Experts
from deepseek_v3.model.mtp import MultiTokenPredictor
from deepseek_v3.parallel.expert_parallel import ExpertExchange


class MeshError(ValueError):
    """Processes, experts or rows that do not divide; the message names the mend."""


class Ways(NamedTuple):
    """Over which processes what is cut.

    Attributes:
        line: the ranks of one pipeline.
        readers: all that hold the same layers, each of which reads other tokens.
        dense: the same, as [replicas, parts] if there are replicas.
        experts: those that share the experts of a layer.
        rest: those that hold the same experts, as [replicas, parts] if there are replicas.
    """

    line: DeviceMesh
    readers: DeviceMesh
    dense: DeviceMesh
    experts: DeviceMesh
    rest: DeviceMesh


def make_ways(device: str, world: int, *, pp: int = 1, ep: int = 1, replicas: int = 1) -> Ways:
    """Lay all processes out, which have met already.

    Raises:
        MeshError: what does not divide their number.
    """
    if pp < 1 or world % pp:
        raise MeshError(f"--pp {pp} must divide the number of processes, {world}")
    readers = world // pp
    whose = f"{readers} of each rank of the pipeline" if pp > 1 else f"{readers}"
    if replicas < 1 or readers % replicas:
        raise MeshError(f"--replicas {replicas} must divide the number of processes, {whose}")
    parts = readers // replicas
    if ep < 1 or parts % ep:
        whose += f", {parts} of each replica" if replicas > 1 else ""
        raise MeshError(f"--ep {ep} must divide the number of processes, {whose}")
    lines = init_device_mesh(device, (pp, readers), mesh_dim_names=("pp", "readers"))
    cut = init_device_mesh(device, (pp, replicas, parts // ep, ep), mesh_dim_names=("pp", "replicas", "rest", "ep"))
    if replicas == 1:
        return Ways(lines["pp"], lines["readers"], lines["readers"], cut["ep"], cut["rest"])
    dense = init_device_mesh(device, (pp, replicas, parts), mesh_dim_names=("pp", "replicas", "parts"))
    return Ways(lines["pp"], lines["readers"], dense["replicas", "parts"], cut["ep"], cut["replicas", "rest"])


def cut_model(model: nn.Module, ways: Ways) -> None:
    """Cut all weights of a model, or of some layers of one; blocks are gathered as they are read.

    Raises:
        MeshError: the experts cannot be shared equally.
    """
    for module in list(model.modules()):
        if isinstance(module, Experts) and ways.experts.size() > 1:
            _spread_experts(module, ways)
    units = [m for m in model.modules() if isinstance(m, Block)]
    units += [m for m in model.modules() if isinstance(m, MultiTokenPredictor)]
    for unit in [*units, model]:
        fully_shard(unit, mesh=ways.dense, reshard_after_forward=True)  # else the root has other parameters then
    for unit in model.modules():
        if isinstance(unit, FSDPModule):  # sums, not means; the loss is divided by all rows already
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def keep_gathered(model: FSDPModule) -> None:
    """From now on until `sum_gradients`: weights that were gathered stay, and gradients add up unsent beside them."""
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    model.set_requires_gradient_sync(False)


def sum_gradients(model: FSDPModule) -> None:
    """Send the gradients that have added up, each to where its weight's part lives, and let gathered weights go.

    FSDP does this where a backward pass ends; a pipeline's last part of one is no pass of its own. PyTorch's stages
    call the same hooks by hand (`PipelineStage.perform_reduce_grad`), of modules that are a stage each.
    """
    model.set_is_last_backward(True)
    model.set_reshard_after_backward(True)
    model.set_requires_gradient_sync(True)
    root = model._get_fsdp_state()
    for state in root._state_ctx.all_states:
        for group in state._fsdp_param_groups:
            group.post_backward()
    root._root_post_backward_final_callback()


def _spread_experts(experts: Experts, ways: Ways) -> None:
    count, ep, rest = experts.gate_up_proj.shape[0], ways.experts.size(), ways.rest.size(-1)
    if count % ep:
        raise MeshError(f"--ep {ep} must divide n_routed_experts={count}")
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, name).detach()
        if weight.shape[1] % rest:
            raise MeshError(
                f"the {rest} processes that hold the same experts cannot share {weight.shape[1]} rows of each equally; "
                f"give an --ep that leaves a divisor of {weight.shape[1]}"
            )
        part = distribute_tensor(weight, ways.experts, [Shard(0)], src_data_rank=None)
        setattr(experts, name, nn.Parameter(part))
    experts.exchange = ExpertExchange(ways.experts.get_group(), count)
    fully_shard(experts, mesh=ways.rest, shard_placement_fn=lambda p: Shard(1))
