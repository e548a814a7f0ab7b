"""Who computes what when: the order in which PyTorch's own schedules run a pipeline, played through by a clock.

    order = list_actions("DualPipeV", 16, 120)      for each rank: what it does, one after the other
    played = play(order, times)                     when each of it begins and ends

A rank does one thing at a time, and an action waits for what it reads. Two actions that run as one (a forward beside a
backward, whose exchanges hide each other) take the time of both. The order is read from `torch.distributed.pipelining`,
not written here; chapter 08 writes the same schedules itself, and tests hold both to the closed forms.

Letters: P ranks, M micro-batches; F forward, I backward for inputs, W for weights, B both.
"""

from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

from deepseek_v3.parallel.stages import STAGES


class Action(NamedTuple):
    """F, I, W or B of a micro-batch at a stage."""

    kind: str
    stage: int
    micro: int


class Times(NamedTuple):
    """How long the parts take at one stage, in any unit."""

    forward: float = 1.0
    inputs: float = 1.0
    weights: float = 1.0


class Slot(NamedTuple):
    """What a rank does at once, and when."""

    actions: tuple[Action, ...]
    start: float
    end: float


Order = list[list[tuple[Action, ...]]]


def list_actions(name: str, ranks: int, micro_batches: int) -> Order:
    """Ask PyTorch for the order of each rank; what moves data between ranks is left out.

    Raises:
        ValueError: an unknown schedule, or too few micro-batches for it.
    """
    from torch.distributed.pipelining import schedules

    if name not in STAGES:
        raise ValueError(f"--schedule {name} is not one of {', '.join(STAGES)}")
    stages = STAGES[name] * ranks
    if micro_batches < stages and name != "ZBV":
        raise ValueError(f"{name} needs at least {stages} micro-batches for {stages} stages, here are {micro_batches}")
    facts: Any = SimpleNamespace(
        pp_group_size=ranks, num_stages=stages, _num_stages=stages, _n_microbatches=micro_batches
    )
    if name == "1F1B":
        found = schedules.Schedule1F1B._get_pipeline_order(facts)
        assert found is not None
        return [_count_forwards(_computing(found[rank])) for rank in range(ranks)]
    kind = {"ZBV": schedules.ScheduleZBVZeroBubble, "DualPipeV": schedules.ScheduleDualPipeV}[name]
    return [_computing(kind._calculate_single_rank_operations(facts, rank)) for rank in range(ranks)]


def _computing(actions: list[Any]) -> list[tuple[Action, ...]]:
    done = []
    for action in actions:
        if action is not None and action.is_compute_op:
            parts = action.sub_actions or (action,)
            done.append(tuple(Action(p.computation_type.value, p.stage_index, p.microbatch_index) for p in parts))
    return done


def _count_forwards(order: list[tuple[Action, ...]]) -> list[tuple[Action, ...]]:
    """Number the forwards from 0: PyTorch's list for the last rank of 1F1B begins at 1, what it runs does not."""
    forwards = 0
    counted = []
    for actions in order:
        if actions[0].kind == "F":
            actions = (actions[0]._replace(micro=forwards),)
            forwards += 1
        counted.append(actions)
    return counted


def _needs(action: Action, last: int) -> list[tuple[str, int, int]]:
    """What must be there before; the inputs' part of a B is there as I."""
    kind, stage, micro = action
    if kind == "F":
        return [("F", stage - 1, micro)] if stage else []
    if kind == "W":
        return [("I", stage, micro)]
    return [("F", stage, micro), *([("I", stage + 1, micro)] if stage < last else [])]


def _duration(action: Action, times: list[Times]) -> float:
    at = times[action.stage]
    return {"F": at.forward, "I": at.inputs, "W": at.weights, "B": at.inputs + at.weights}[action.kind]


def play(order: Order, times: list[Times]) -> list[list[Slot]]:
    """Let every rank do what it has to, as early as what it reads and its own work allow.

    Args:
        times: of each stage.
    Raises:
        ValueError: the ranks wait for each other for ever.
    """
    done: dict[tuple[str, int, int], float] = {}
    played: list[list[Slot]] = [[] for _ in order]
    left, last = sum(map(len, order)), len(times) - 1
    while left:
        before = left
        for actions, slots in zip(order, played):
            while len(slots) < len(actions):
                now = actions[len(slots)]
                needs = [need for action in now for need in _needs(action, last)]
                if not all(need in done for need in needs):
                    break
                start = max([0.0, *(slot.end for slot in slots[-1:]), *(done[need] for need in needs)])
                end = start + sum(_duration(action, times) for action in now)
                slots.append(Slot(now, start, end))
                done |= {("I" if a.kind == "B" else a.kind, a.stage, a.micro): end for a in now}
                left -= 1
        if left == before:
            raise ValueError("the ranks wait for each other for ever: this order has a circle")
    return played


def makespan(played: list[list[Slot]]) -> float:
    """Return the time from the first beginning to the last end."""
    return max(slots[-1].end for slots in played) - min(slots[0].start for slots in played)


def bubbles(played: list[list[Slot]]) -> list[float]:
    """Return how long each rank waits meanwhile."""
    whole = makespan(played)
    return [whole - sum(slot.end - slot.start for slot in slots) for slots in played]


def most_held(order: list[tuple[Action, ...]], held: list[float]) -> float:
    """Return the most that a rank holds at once, if a micro-batch holds so much of each stage until its backward ends.

    Where the backward is in two parts, until that for the weights ends: it reads what the forward left.
    """
    sign = {"F": 1, "B": -1, "W": -1, "I": 0}
    return max(accumulate(sign[a.kind] * held[a.stage] for actions in order for a in sorted(actions)[::-1]))
