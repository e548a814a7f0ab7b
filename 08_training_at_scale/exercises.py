"""Build what plans a training at scale, the last a simulator, and have every step graded.

    make check CH=08            (or: python -m utils.exercises 08, from the root)

Fill in the bodies, in any order. Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
Letters: P stages, M micro-batches; F forward, B whole backward of one micro-batch at one stage. Plain Python numbers.
"""


def forwards_ahead(p: int, P: int, M: int) -> int:
    """Say how many forwards rank p (0 is the first) runs before its first backward in turns, under 1F1B.

    Notebook: pipeline_schedules.
    """
    raise NotImplementedError


def pipeline_time(P: int, M: int, F: float, B: float) -> float:
    """Compute how long a step takes under GPipe or 1F1B, from the first forward to the last backward.

    Notebook: pipeline_schedules; arXiv:2412.19437, Table 2.
    """
    raise NotImplementedError


def crossing_bytes(experts: list[int], own_node: int, experts_per_node: int, D: int) -> int:
    """Count the bytes that one token of width D (a multiple of 128) causes between nodes, out to its experts and back.

    Out it goes in FP8: a byte a number and four bytes of scale for each 128; back in BF16.

    Notebook: expert_parallelism; arXiv:2412.19437, sections 3.2.2 and 3.3.3.
    """
    raise NotImplementedError


def uncovered_time(mlp_b: float, mlp_w: float, mlp_f: float, dispatch_f: float, dispatch_b: float) -> float:
    """Say how long nothing is computed between the start of MLP(B) and that of ATTN(B) under Fig. 4.

    Computing runs MLP(B), MLP(W), MLP(F), ATTN(B); the network DISPATCH(F), DISPATCH(B). DISPATCH(F) starts with
    MLP(B). MLP(F) waits for DISPATCH(F), DISPATCH(B) for MLP(B), ATTN(B) for DISPATCH(B); a stream does one thing.

    Notebook: overlap; arXiv:2412.19437, Fig. 4.
    """
    raise NotImplementedError


def training_hours(N: float, score_flops: float, tokens: float, flops_s: float) -> float:
    """Compute the GPU hours of training: N weights that a token meets, `score_flops` forward operations of attention.

    `score_flops` is what the scores of one token cost in a forward pass, all layers; `flops_s` the rate of one GPU.

    Notebook: cost_of_training.
    """
    raise NotImplementedError


def count_copies(loads: list[float], n_slots: int) -> list[int]:
    """Decide how many copies each expert gets: one each at first, then one after the other where it helps most.

    The copies of an expert share its load equally; what is to become small is the largest load of a copy. Among equals
    the first expert wins.

    Notebook: deployment; arXiv:2412.19437, section 3.4.
    """
    raise NotImplementedError


def schedule_from_an_empty_file(
    order: list[list[tuple[str, int]]], F: float, B: float
) -> dict[tuple[str, int, int], float]:
    """Simulate a pipeline: for each ("F" or "B", micro-batch, rank) say when it ends. One stage a rank.

    `order[p]` lists what rank p does, as ("F", 0), ("B", 0) and so on. A rank does one thing at a time. A forward waits
    for the same micro-batch's forward on rank p - 1; a backward for the backward on rank p + 1 and the own forward.

    Notebook: pipeline_schedules.
    """
    raise NotImplementedError
