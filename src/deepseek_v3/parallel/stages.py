"""Which layers each stage of a pipeline holds, and which stages each rank.

    V of two ranks, four stages:  rank 0: stages 0 and 3       rank 1: stages 1 and 2

In a V the first and the last stage meet on rank 0, and with them embedding, head and the MTP modules, which share both.

Source: arXiv:2412.19437, section 3.2.1.
"""

from typing import NamedTuple

STAGES = {"1F1B": 1, "ZBV": 2, "DualPipeV": 2}  # a rank holds


class Stage(NamedTuple):
    """Some layers in a row; the first stage has the embedding too, the last one norm, head and MTP modules."""

    layers: range
    first: bool
    last: bool


def split_layers(n_layers: int, n_mtp: int, n_stages: int) -> list[Stage]:
    """Cut the layers so that every stage weighs about the same; embedding, head and MTP modules count as layers.

    Raises:
        ValueError: a stage in the middle would have no layer.
    """
    weight, counts = [0] * n_stages, [0] * n_stages
    weight[0] += 1
    weight[-1] += 1 + n_mtp
    for _ in range(n_layers):
        lightest = min(range(n_stages), key=weight.__getitem__)
        weight[lightest] += 1
        counts[lightest] += 1
    if 0 in counts[1:-1]:
        raise ValueError(f"{n_layers} layers cannot fill {n_stages} stages; give a smaller --pp")
    stages, start = [], 0
    for i, count in enumerate(counts):
        stages.append(Stage(range(start, start + count), i == 0, i == n_stages - 1))
        start += count
    return stages


def stages_of_rank(rank: int, ranks: int, per_rank: int) -> list[int]:
    """Return the stages that a rank holds: its own, and in a V the one that faces it."""
    return [rank] if per_rank == 1 else [rank, 2 * ranks - 1 - rank]
