"""Weights by name: every matrix from a generator of its own, so that no other one need be drawn to find its numbers.

    matrix ~ N(0, std^2)        generator seeded by SHA-256 of seed and name; of a stack, one for each matrix in it

Source: none; the report gives the distribution only (arXiv:2412.19437, section 4.2).
"""

import hashlib

import torch
from torch import Tensor


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
