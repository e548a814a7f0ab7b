"""Context parallelism: each of several processes reads a section of the same rows.

    latents [B, S, C + R] of everybody -> [B, T, C + R] in everybody: attention needs no more of the others' tokens

Multi-head latent attention makes keys and values from latents, so 576 numbers a token travel in place of 32,768 + 64.
Sections lie one behind the other: the last process attends to the whole row, the first to its own section only.

Letters: B rows, S tokens of a section, T of a row, C latent, R rotary width, W = C + R, P processes.
Source: arXiv:2412.19437, section 2.1.1; the gathering of keys and values over a row: arXiv:2407.21783, section 3.3.2.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from deepseek_v3.model.section import Section
from deepseek_v3.parallel.shard import MeshError


class Sections:
    """The processes that share rows: `cp` in a row, of all."""

    def __init__(self, device: str, world: int, cp: int) -> None:
        """Find the others.

        Raises:
            MeshError: `cp` does not divide the number of processes.
        """
        if world % cp:
            raise MeshError(f"--cp {cp} must divide the number of processes, {world}")
        mesh = init_device_mesh(device, (world // cp, cp), mesh_dim_names=("rows", "cp"))["cp"]
        self.cp, self.mine, self.group = cp, mesh.get_local_rank(), mesh.get_group()

    def cut(self, batch: Any, n_mtp: int) -> Any:
        """Return the batch with the section that is this process's; its tokens stay whole, for labels reach over.

        Raises:
            MeshError: rows that cannot be shared equally, or sections too short for the MTP modules.
        """
        length = batch.tokens.shape[1] - 1
        if length % self.cp:
            raise MeshError(f"--cp {self.cp} must divide --seq-len {length}")
        size = length // self.cp
        if size <= n_mtp:
            raise MeshError(f"sections of {size} tokens are too short for {n_mtp} MTP modules; give a smaller --cp")
        start = self.mine * size
        position_S = torch.arange(start, start + size, device=batch.tokens.device)
        section = Section(position_S, start, start + size, self._gather, self._add, size)
        return type(batch)(batch.tokens, batch.documents, section)

    def _gather(self, x_BSW: Tensor) -> Tensor:
        return _Gather.apply(x_BSW, self.group)  # type: ignore[return-value]

    def _add(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total


class _Gather(torch.autograd.Function):
    """Everybody's sections in the order of the row; the gradient of each is summed where it came from, in FP32."""

    @staticmethod
    def forward(ctx: Any, x_BSW: Tensor, group: dist.ProcessGroup) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.processes = group, dist.get_world_size(group)
        batch, size, width = x_BSW.shape
        all_PBSW = x_BSW.new_empty(ctx.processes, batch, size, width)
        dist.all_gather_single(all_PBSW.flatten(0, 1), x_BSW.contiguous(), group=group)
        return all_PBSW.transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad_PBSW = grads[0].float().unflatten(1, (ctx.processes, -1)).transpose(0, 1).contiguous()
        mine_BSW = torch.empty_like(grad_PBSW[0])
        dist.reduce_scatter_single(mine_BSW, grad_PBSW.flatten(0, 1), group=ctx.group)
        return mine_BSW.to(grads[0].dtype), None
