"""Deployment: units that read and units that write, and experts copied where the load is.

Run it:    python deployment.py
Notebook:  deployment.ipynb
Source:    arXiv:2412.19437, section 3.4; the placement: deepseek-ai/EPLB; the bound of a step: arXiv:2505.09343; the
           unit of 2025 and its day of tokens: deepseek-ai/open-infra-index, day 6.
Letters:   E experts, A active per token, D width, L layers. A *slot* is room for one expert on one GPU.

The slowest GPU of a unit sets its pace: all others wait for its tokens. So the heaviest experts get copies, each of
which takes its share of the load, and the copies are packed so that every GPU has as many slots and about as much load.
"""

from typing import NamedTuple

import numpy as np
from expert_parallelism import IB_BYTES_S

Placement = list[list[int]]  # for each GPU, the experts in its slots


class Unit(NamedTuple):
    """The smallest group of GPUs that serves: how attention and experts are spread over it."""

    nodes: int
    gpus: int
    attention_tensor_parallel: int
    attention_data_parallel: int
    slots: int  # copies of routed experts in each MoE layer; the shared one only where it counts as routed


PREFILL = Unit(nodes=4, gpus=32, attention_tensor_parallel=4, attention_data_parallel=8, slots=256 + 32)
DECODE = Unit(nodes=40, gpus=320, attention_tensor_parallel=4, attention_data_parallel=80, slots=320)
DECODE_2025 = Unit(nodes=18, gpus=144, attention_tensor_parallel=1, attention_data_parallel=144, slots=256 + 32)


def copy_experts(load_E: np.ndarray, n_slots: int) -> np.ndarray:
    """Give every expert a slot, then each further slot to the expert whose copies are loaded most.

    Greedy, and best possible: no other numbers of copies have a smaller largest load / copies.

    Returns:
        copies_E: how many slots each expert gets; at least one, n_slots together.
    Raises:
        ValueError: there are fewer slots than experts.
    """
    if n_slots < len(load_E):
        raise ValueError(f"{n_slots} slots do not hold {len(load_E)} experts; every expert needs one")
    copies_E = np.ones(len(load_E), int)
    for _ in range(n_slots - len(load_E)):
        copies_E[np.argmax(load_E / copies_E)] += 1
    return copies_E


def pack_evenly(weight: np.ndarray, n_packs: int) -> list[list[int]]:
    """Put items into packs of equal number: the heaviest first, each into the lightest pack that has room.

    Raises:
        ValueError: the items do not divide evenly.
    """
    if len(weight) % n_packs:
        raise ValueError(f"{len(weight)} items do not divide over {n_packs} packs")
    room = len(weight) // n_packs
    packs: list[list[int]] = [[] for _ in range(n_packs)]
    total = np.zeros(n_packs)
    for item in np.argsort(-weight, kind="stable"):
        open_packs = [p for p in range(n_packs) if len(packs[p]) < room]
        lightest = min(open_packs, key=lambda p: total[p])
        packs[lightest].append(int(item))
        total[lightest] += weight[item]
    return packs


def place_globally(load_E: np.ndarray, n_slots: int, n_gpus: int) -> Placement:
    """Copy over all experts and pack over all GPUs, whatever the groups; among equals the first slots go first."""
    copies_E = copy_experts(load_E, n_slots)
    first = np.arange(len(load_E))
    expert = np.concatenate([first, np.repeat(first, copies_E - 1)])
    return [[int(expert[i]) for i in pack] for pack in pack_evenly((load_E / copies_E)[expert], n_gpus)]


def place_by_groups(load_E: np.ndarray, n_slots: int, n_gpus: int, n_groups: int, n_nodes: int) -> Placement:
    """Pack whole groups of experts into nodes, then copy and pack inside each node.

    A token that is kept to four groups then needs few nodes, whatever was copied.
    """
    group_GX = np.arange(len(load_E)).reshape(n_groups, -1)
    placement: Placement = []
    for groups in pack_evenly(load_E[group_GX].sum(axis=1), n_nodes):
        experts = group_GX[groups].ravel()
        inside = place_globally(load_E[experts], n_slots // n_nodes, n_gpus // n_nodes)
        placement += [[int(experts[e]) for e in gpu] for gpu in inside]
    return placement


def place_experts(load_E: np.ndarray, n_slots: int, n_gpus: int, n_groups: int, n_nodes: int) -> Placement:
    """Choose as EPLB does: by groups if the groups divide over the nodes, else globally."""
    if n_groups % n_nodes == 0:
        return place_by_groups(load_E, n_slots, n_gpus, n_groups, n_nodes)
    return place_globally(load_E, n_slots, n_gpus)


def gpu_loads(placement: Placement, load_E: np.ndarray) -> np.ndarray:
    """Add up the load of every GPU; the copies of an expert share its load equally."""
    copies_E = np.bincount(np.concatenate(placement), minlength=len(load_E))
    return np.array([sum(load_E[e] / copies_E[e] for e in gpu) for gpu in placement])


def imbalance(loads: np.ndarray) -> float:
    """Return the largest load over the mean: how much slower the unit is than if all GPUs were loaded alike."""
    return float(loads.max() / loads.mean())


def nodes_reached(chosen_NA: np.ndarray, placement: Placement, n_nodes: int, rng: np.random.Generator) -> float:
    """Return on how many nodes the experts of a token lie, as a mean; of several copies one is drawn."""
    per_node = len(placement) // n_nodes
    homes: dict[int, list[int]] = {}
    for gpu, experts in enumerate(placement):
        for e in experts:
            homes.setdefault(e, []).append(gpu // per_node)
    return float(np.mean([len({int(rng.choice(homes[int(e)])) for e in experts}) for experts in chosen_NA]))


def load_with_shared(load_E: np.ndarray, n_active: int) -> np.ndarray:
    """Append the shared expert as one more routed one, which every token chooses: its load is that of all tokens."""
    return np.append(load_E, load_E.sum() / n_active)


def expert_bytes(slots: int, D: int = 7168, F: int = 2048, n_moe_layers: int = 58) -> int:
    """Count the memory of `slots` experts in every MoE layer of a GPU, in FP8 without scales."""
    return slots * n_moe_layers * 3 * D * F


def exchange_seconds(tokens: int = 32, copies: int = 9, width: int = 7000, bytes_s: float = IB_BYTES_S) -> float:
    """Bound the exchange of a decoding step: a byte a number out, two back, a copy for each expert.

    Decoding sends to every expert directly: no relay in a node, no sums on the way. The paper counts a width of 7,000.
    Source: arXiv:2505.09343.
    """
    return (1 + 2) * tokens * copies * width / bytes_s


def token_seconds(L: int = 61, **exchange) -> float:
    """Bound the time of a token: two micro-batches take turns in each of L layers, and sending alone counts."""
    return L * 2 * exchange_seconds(**exchange)


def serving_day() -> tuple[float, float]:
    """Return dollars of rent and of list prices for the day of February 2025 that DeepSeek published.

    226.75 nodes of 8 GPUs at $2 an hour; 342 of 608 billion read tokens from the cache at $0.14 a million, the others
    at $0.55, 168 billion written ones at $2.19.
    """
    rent = 226.75 * 8 * 24 * 2.0
    return rent, (342e9 * 0.14 + (608e9 - 342e9) * 0.55 + 168e9 * 2.19) / 1e6


def main() -> None:
    """Place skewed experts on the prefill unit, give the shared expert its copies, and bound a decoding step."""
    rng = np.random.default_rng(0)
    load_E = rng.lognormal(sigma=0.6, size=256)
    print(f"256 experts of uneven load, the heaviest {load_E.max() / load_E.mean():.1f} times the mean, on 32 GPUs:")
    in_order = [list(range(8 * g, 8 * g + 8)) for g in range(32)]
    print(
        f"  in order of their numbers: the fullest GPU has {imbalance(gpu_loads(in_order, load_E)):.2f} times the mean"
    )
    for name, slots in (("packed, no copies", 256), ("32 redundant (the report)", PREFILL.slots)):
        placement = place_experts(load_E, slots, PREFILL.gpus, 8, PREFILL.nodes)
        print(f"  {name}: {imbalance(gpu_loads(placement, load_E)):.2f} times the mean")
    even = np.ones(256)
    copies = copy_experts(load_with_shared(even, 8), DECODE.slots)
    print(
        f"320 slots for decoding, even load: the shared expert gets {copies[-1]} of the 64 that the report leaves open"
    )
    print(f"9 experts a GPU are {expert_bytes(9) / 1e9:.1f} GB, one is {expert_bytes(1) / 1e9:.2f} GB")
    print(f"sending alone: {token_seconds() * 1e3:.2f} ms a token, {int(1 / token_seconds())} tokens a second")
    rent, income = serving_day()
    print(f"a day in February 2025: ${rent:,.0f} of rent, ${income:,.0f} at list prices, {income / rent - 1:.0%} more")


if __name__ == "__main__":
    main()
