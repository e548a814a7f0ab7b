"""Weights by name: every matrix from a generator of its own, so that no other one need be drawn to find its numbers;
and weights in turn, for who keeps a part of each.

    matrix ~ N(0, std^2)        generator seeded by SHA-256 of seed and name; of a stack, one for each matrix in it

Source: none; the report gives the distribution only (arXiv:2412.19437, section 4.2).
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_v3.model.linear import Embedding, Linear


def make_named_generator(seed: int, name: str) -> torch.Generator:
    """Return a generator on the CPU that only this name has."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def draw_by_name(weight: Tensor, name: str, std: float, seed: int) -> None:
    """Fill a matrix, or each of a stack of experts by itself: expert `i` is `NAME.i`, whoever holds it.

    Numbers are drawn in FP32 on the CPU and rounded to the weight's dtype.
    """
    if weight.dim() > 2:
        for i, matrix in enumerate(weight):
            draw_by_name(matrix, f"{name}.{i}", std, seed)
        return
    generator = make_named_generator(seed, name)
    weight.copy_(torch.empty(weight.shape, dtype=torch.float32, device="cpu").normal_(0, std, generator=generator))


def draw_in_turn(model: nn.Module, std: float) -> Iterator[tuple[str, Tensor]]:
    """Draw what a model that is built on the CPU draws, in its order, and hand out one tensor after the other.

    The numbers are the same to the last bit, and so is what the generator gives next. Who lets each tensor go before
    the next one comes has never more than one in memory.

    Args:
        model: whole, on `meta`; it may be cut once this has returned.
    Yields:
        weights and buffers by name; what two modules share twice, and the second time counts.
    """
    built: list[tuple[Any, ...]] = []
    for module in model.modules():
        if isinstance(module, Linear):
            built.append((Linear, module.in_features, module.out_features))
        elif isinstance(module, Embedding):
            built.append((Embedding, module.num_embeddings, module.embedding_dim))
    shapes = [(name, weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)]
    zeros = [(name, buffer.shape) for name, buffer in model.named_buffers()]

    def draw() -> Iterator[tuple[str, Tensor]]:
        for kind, *sizes in built:
            kind(*sizes)  # its constructor draws too
        for name, shape in shapes:
            yield name, torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(0, std)
        for name, shape in zeros:
            yield name, torch.zeros(shape)

    return draw()


def allocate(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put what `make` makes of each tensor on `meta` in its place; what two modules share stays one.

    (PyTorch's `to_empty` makes two of it, and imports the compiler: 1 s.)
    """
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, planned in tensors.items():
                if planned is not None and planned.is_meta:
                    if planned not in made:
                        room = make(planned)
                        is_weight = isinstance(planned, nn.Parameter)
                        made[planned] = nn.Parameter(room, planned.requires_grad) if is_weight else room
                    tensors[name] = made[planned]  # type: ignore[assignment]
