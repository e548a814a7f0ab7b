"""The answers to exercises.py, each with the reason; read them after your own attempt."""


def forwards_ahead(p: int, P: int, M: int) -> int:
    """From rank p a micro-batch passes P - 1 - p further ranks before its backward can come back."""
    return min(P - 1 - p, M)


def pipeline_time(P: int, M: int, F: float, B: float) -> float:
    """M micro-batches of work, and P - 1 that a rank waits for others to fill and to drain."""
    return (M + P - 1) * (F + B)


def crossing_bytes(experts: list[int], own_node: int, experts_per_node: int, D: int) -> int:
    """A set of nodes, since a node hands on inside and adds up before it answers."""
    nodes = {e // experts_per_node for e in experts} - {own_node}
    return len(nodes) * (D + 4 * D // 128 + 2 * D)


def uncovered_time(mlp_b: float, mlp_w: float, mlp_f: float, dispatch_f: float, dispatch_b: float) -> float:
    """Follow both streams; what the computing waits for is in the start of ATTN(B)."""
    mlp_f_ends = max(mlp_b + mlp_w, dispatch_f) + mlp_f
    dispatch_b_ends = max(mlp_b, dispatch_f) + dispatch_b
    return max(mlp_f_ends, dispatch_b_ends) - (mlp_b + mlp_w + mlp_f)


def training_hours(N: float, score_flops: float, tokens: float, flops_s: float) -> float:
    """Forward once, backward twice as much: three times 2 N and three times the scores."""
    return tokens * 3 * (2 * N + score_flops) / flops_s / 3600


def count_copies(loads: list[float], n_slots: int) -> list[int]:
    """The largest share can only become smaller by a copy of the expert that has it: greedy is best."""
    copies = [1] * len(loads)
    while sum(copies) < n_slots:
        shares = [load / n for load, n in zip(loads, copies)]
        copies[shares.index(max(shares))] += 1
    return copies


def schedule_from_an_empty_file(
    order: list[list[tuple[str, int]]], F: float, B: float
) -> dict[tuple[str, int, int], float]:
    """Two rules, applied until nothing is left; the order of going round does not matter."""
    ends: dict[tuple[str, int, int], float] = {}
    free, place = [0.0] * len(order), [0] * len(order)
    while sum(place) < sum(map(len, order)):
        for p, tasks in enumerate(order):
            while place[p] < len(tasks):
                kind, m = tasks[place[p]]
                first, last = p == 0, p == len(order) - 1
                needs = (
                    [("F", m, p - 1)] * (not first) if kind == "F" else [("F", m, p)] + [("B", m, p + 1)] * (not last)
                )
                if any(n not in ends for n in needs):
                    break
                free[p] = ends[kind, m, p] = max([free[p], *(ends[n] for n in needs)]) + (F if kind == "F" else B)
                place[p] += 1
    return ends
