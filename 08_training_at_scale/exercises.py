"""Your turn: functions of training at scale, the last a simulator. Fill in the bodies, then run `make check CH=08`.

Letters: P stages, M micro-batches; F forward, B whole backward of one micro-batch at one stage. Plain Python numbers.
"""


def forwards_ahead(p: int, P: int, M: int) -> int:
    """Say how many forwards rank p (0 is the first) runs before its first backward in turns, under 1F1B.

    Module pipeline_schedules.py.
    Hint 1: the last rank can turn round at once: its forward is followed by its own backward.
    Hint 2: each rank before it must have one more on the way.
    Hint 3: never more than there are micro-batches.
    """
    raise NotImplementedError


def pipeline_time(P: int, M: int, F: float, B: float) -> float:
    """Compute how long a step takes under GPipe or 1F1B, from the first forward to the last backward.

    Source: arXiv:2412.19437, Table 2; module pipeline_schedules.py.
    Hint 1: how long is a rank busy, whatever the order?
    Hint 2: the bubble is (P - 1)(F + B), on every rank.
    Hint 3: work and bubble together.
    """
    raise NotImplementedError


def crossing_bytes(experts: list[int], own_node: int, experts_per_node: int, D: int) -> int:
    """Count the bytes that one token of width D (a multiple of 128) causes between nodes, out to its experts and back.

    Out it goes in FP8: a byte a number and four bytes of scale for each 128; back in BF16.

    Source: arXiv:2412.19437, sections 3.2.2 and 3.3.3; module expert_parallelism.py.
    Hint 1: which nodes does it need? Each is visited once, however many of its experts were chosen.
    Hint 2: what stays in the own node does not cross.
    Hint 3: a crossing weighs D + 4 D / 128 out and 2 D back.
    """
    raise NotImplementedError


def uncovered_time(mlp_b: float, mlp_w: float, mlp_f: float, dispatch_f: float, dispatch_b: float) -> float:
    """Say how long nothing is computed between the start of MLP(B) and that of ATTN(B) under Fig. 4.

    Computing runs MLP(B), MLP(W), MLP(F), ATTN(B); the network DISPATCH(F), DISPATCH(B). DISPATCH(F) starts with
    MLP(B). MLP(F) waits for DISPATCH(F), DISPATCH(B) for MLP(B), ATTN(B) for DISPATCH(B); a stream does one thing.

    Source: arXiv:2412.19437, Fig. 4; module overlap.py.
    Hint 1: put MLP(B) at time 0; when does each of the other pieces start and end?
    Hint 2: each starts at the later of two ends: of what is before it on its stream, and of what it waits for.
    Hint 3: the start of ATTN(B), less the three computings.
    """
    raise NotImplementedError


def training_hours(N: float, score_flops: float, tokens: float, flops_s: float) -> float:
    """Compute the GPU hours of training: N weights that a token meets, `score_flops` forward operations of attention.

    `score_flops` is what the scores of one token cost in a forward pass, all layers; `flops_s` the rate of one GPU.

    Module cost_of_training.py.
    Hint 1: a weight costs a multiplication and an addition in the forward pass.
    Hint 2: the backward pass makes two products of each: for the inputs and for the weights (or both score factors).
    Hint 3: 6 N + 3 scores a token; a rate is a second's, and an hour has 3,600 of them.
    """
    raise NotImplementedError


def count_copies(loads: list[float], n_slots: int) -> list[int]:
    """Decide how many copies each expert gets: one each at first, then one after the other where it helps most.

    The copies of an expert share its load equally; what is to become small is the largest load of a copy. Among equals
    the first expert wins.

    Source: arXiv:2412.19437, section 3.4; module deployment.py.
    Hint 1: every expert needs a slot, however small its load.
    Hint 2: an expert with load 9 and 3 copies burdens each GPU with 3, not with 9.
    Hint 3: as long as slots are left, add a copy to the expert whose load / copies is the largest.
    """
    raise NotImplementedError


def finish_times(order: list[list[tuple[str, int]]], F: float, B: float) -> dict[tuple[str, int, int], float]:
    """Simulate a pipeline: for each ("F" or "B", micro-batch, rank) say when it ends. One stage a rank.

    `order[p]` lists what rank p does, as ("F", 0), ("B", 0) and so on. A rank does one thing at a time. A forward waits
    for the same micro-batch's forward on rank p - 1; a backward for the backward on rank p + 1 and the own forward.

    Module pipeline_schedules.py.
    Hint 1: keep a dictionary of what has ended, and for each rank when it is free and how far it has come.
    Hint 2: go round the ranks; let each do as much as it can; go round again until all lists are done.
    Hint 3: start = max(free[p], the ends of what it waits for); end = start + F or B.
    """
    raise NotImplementedError
