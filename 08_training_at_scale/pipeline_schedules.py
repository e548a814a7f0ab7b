"""Pipeline schedules: who computes what when, if the layers of a model are spread over P ranks.

Run it:    python pipeline_schedules.py
Notebook:  pipeline_schedules.ipynb
Source:    arXiv:2412.19437, section 3.2.1, Fig. 5 and Table 2. GPipe: 1811.06965; 1F1B: 1806.03377; zero bubble
           (ZB1P is its ZB-H1): 2401.10241; DualPipeV: the "cut-in-half" form in deepseek-ai/DualPipe.
Letters:   P pipeline stages (the report's PP), M micro-batches; times F forward, B whole backward, W its part for the
           weights, O = B - W its part for the inputs, FB a forward and a backward that overlap (F&B).

A schedule is an order of operations for each rank, nothing else. When each of them runs follows from two rules: a rank
does one thing at a time, and an operation waits for what it reads. `run_schedule` applies the rules; the *bubble* of a
rank is the time in which it waits. The closed forms of Table 2 must come out, and do.
"""

from collections import deque
from itertools import accumulate
from typing import NamedTuple

FORWARD, BACKWARD, INPUTS, WEIGHTS, PAIR = "F", "B", "O", "W", "&"


class Times(NamedTuple):
    """How long things take; a pair costs less than its parts if communication hides in it."""

    forward: float = 1.0
    backward: float = 2.0
    weights: float = 1.0
    pair: float = 3.0


class Task(NamedTuple):
    """One operation of a rank on a micro-batch at a stage; a PAIR holds two tasks instead."""

    kind: str
    micro: int
    stage: int
    stream: int = 0  # DualPipe feeds micro-batches from both ends: two streams that never meet
    parts: tuple["Task", ...] = ()


class Slot(NamedTuple):
    """A task with its place in time."""

    task: Task
    start: float
    end: float


Order = list[list[Task]]  # for each rank, its tasks one after the other


def duration(task: Task, times: Times) -> float:
    """Look up how long a task takes."""
    F, B, W, FB = times
    return {FORWARD: F, BACKWARD: B, INPUTS: B - W, WEIGHTS: W, PAIR: FB}[task.kind]


def needs(task: Task, n_stages: int) -> list[tuple]:
    """Name what a task reads: (kind, micro, stage, stream); a backward of either form is there as INPUTS."""
    if task.kind == PAIR:
        return [n for part in task.parts for n in needs(part, n_stages)]
    kind, micro, stage, stream = task[:4]
    if kind == FORWARD:
        return [(FORWARD, micro, stage - 1, stream)] if stage else []
    if kind == WEIGHTS:
        return [(INPUTS, micro, stage, stream)]
    above = [(INPUTS, micro, stage + 1, stream)] if stage < n_stages - 1 else []
    return [(FORWARD, micro, stage, stream), *above]


def gives(task: Task) -> list[tuple]:
    """Name what is there once a task is done."""
    if task.kind == PAIR:
        return [g for part in task.parts for g in gives(part)]
    kind = INPUTS if task.kind == BACKWARD else task.kind
    return [(kind, *task[1:4])]


def run_schedule(order: Order, n_stages: int, times: Times) -> list[list[Slot]]:
    """Let every rank work through its tasks, each as early as what it reads and the rank allow.

    Raises:
        ValueError: the ranks wait for each other for ever.
    """
    done: dict[tuple, float] = {}
    waiting, slots = [deque(tasks) for tasks in order], [[] for _ in order]
    while any(waiting):
        moved = False
        for rank, queue in enumerate(waiting):
            while queue and all(n in done for n in needs(queue[0], n_stages)):
                task = queue.popleft()
                free = [slot.end for slot in slots[rank][-1:]]
                start = max([0.0, *free, *(done[n] for n in needs(task, n_stages))])
                slots[rank].append(Slot(task, start, start + duration(task, times)))
                done |= dict.fromkeys(gives(task), slots[rank][-1].end)
                moved = True
        if not moved:
            heads = [queue[0][:4] for queue in waiting if queue]
            raise ValueError(f"the ranks wait for each other: {heads[:4]} can never start; the order has a circle")
    return slots


def measure_bubbles(slots: list[list[Slot]]) -> list[float]:
    """Return the time that each rank waits between the first start and the last end of all."""
    begin, end = min(s[0].start for s in slots), max(s[-1].end for s in slots)
    return [end - begin - sum(slot.end - slot.start for slot in rank) for rank in slots]


def measure_memory(slots: list[list[Slot]]) -> list[int]:
    """Return the most micro-batches whose activations a rank holds at once: from a forward to the end of its backward.

    Under a split backward they are held until the weights' part is done, which needs the inputs of the layers.
    """
    most = []
    for rank in slots:
        tasks = [(slot, task) for slot in rank for task in slot.task.parts or (slot.task,)]
        steps = [(slot.start, 1) for slot, task in tasks if task.kind == FORWARD]
        steps += [(slot.end, -1) for slot, task in tasks if task.kind in (BACKWARD, WEIGHTS)]
        most.append(max(accumulate(change for _, change in sorted(steps))))
    return most


def gpipe_order(P: int, M: int) -> Order:
    """All forwards, then all backwards: a rank must hold the activations of all M micro-batches."""
    return [
        [*(Task(FORWARD, m, p) for m in range(M)), *(Task(BACKWARD, m, p) for m in reversed(range(M)))]
        for p in range(P)
    ]


def one_f_one_b_order(P: int, M: int) -> Order:
    """1F1B: fill the pipe, then one forward and one backward in turns; rank p holds P - p micro-batches at most."""
    order = []
    for p in range(P):
        ahead = min(P - 1 - p, M)
        tasks = [Task(FORWARD, m, p) for m in range(ahead)]
        for m in range(M):
            tasks += [Task(FORWARD, m + ahead, p)] * (m + ahead < M) + [Task(BACKWARD, m, p)]
        order.append(tasks)
    return order


def zero_bubble_order(P: int, M: int) -> Order:
    """ZB1P: 1F1B with the backward split; rank p puts its weights' parts off by p micro-batches, into the gaps.

    The input part is what the next rank waits for; the weights' part nobody waits for.
    """
    order = []
    for p, rank in enumerate(one_f_one_b_order(P, M)):
        tasks = []
        for task in rank:
            tasks.append(task if task.kind == FORWARD else task._replace(kind=INPUTS))
            if task.kind == BACKWARD and task.micro >= p:
                tasks.append(Task(WEIGHTS, task.micro - p, p))
        order.append(tasks + [Task(WEIGHTS, m, p) for m in range(max(M - p, 0), M)])
    return order


class _Lane:
    """Write the tasks of one rank that has two chunks: counts micro-batches of each, remembers weights put off."""

    def __init__(self, stages: tuple[int, int], streams: tuple[int, int]):
        self.stages, self.streams = stages, streams
        self.next, self.put_off, self.tasks = {}, deque(), []

    def make(self, kind: str, chunk: int) -> Task:
        """The next micro-batch of a chunk, for a forward or a backward."""
        key = kind == FORWARD, chunk
        micro = self.next[key] = self.next.get(key, -1) + 1
        return Task(kind, micro, self.stages[chunk], self.streams[chunk])

    def add(self, kind: str, chunk: int) -> None:
        """A forward, a whole backward, or a backward whose weights' part is put off."""
        task = self.make(kind, chunk)
        self.tasks.append(task)
        if kind == INPUTS:
            self.put_off.append(task._replace(kind=WEIGHTS))

    def add_pair(self, forward: int, backward: int) -> None:
        """A forward of one chunk beside a backward of the other."""
        parts = self.make(FORWARD, forward), self.make(BACKWARD, backward)
        self.tasks.append(Task(PAIR, parts[0].micro, parts[0].stage, parts[0].stream, parts))

    def add_weights(self) -> None:
        """The weights' part that was put off first."""
        self.tasks.append(self.put_off.popleft())


def two_chunk_tasks(near: int, half: int, M: int, stages: tuple[int, int], streams: tuple[int, int]) -> list[Task]:
    """Order the tasks of a rank that is `near` steps from the end where chunk 0 enters, `half` ranks from the middle.

    Eight phases: fill; fill with both chunks; drain chunk 1 with split backwards; the long middle, in which every
    forward overlaps a backward; and the mirror of the first three, where weights' parts fill the gaps.
    """
    lane, rest = _Lane(stages, streams), half - near - 1
    for _ in range(2 * rest):
        lane.add(FORWARD, 0)
    for _ in range(near + 1):
        lane.add(FORWARD, 0)
        lane.add(FORWARD, 1)
    for _ in range(rest):
        lane.add(INPUTS, 1)
        lane.add_weights()
        lane.add(FORWARD, 1)
    for i in range(M - 2 * half + near + 1):
        if i == 0 and rest == 0:  # the middle ranks do not overlap their first two: the bubble is shorter
            lane.add(FORWARD, 0)
            lane.add(BACKWARD, 1)
        else:
            lane.add_pair(0, 1)
        lane.add_pair(1, 0)
    for _ in range(rest):
        lane.add(BACKWARD, 1)
        lane.add_pair(1, 0)
    for i in range(near + 1):  # the second half of these backwards is split
        late = i > (near + 1) // 2 or (i == (near + 1) // 2 and near % 2 == 1)
        lane.add(INPUTS if late else BACKWARD, 1)
        lane.add(INPUTS if i >= (near + 1) // 2 else BACKWARD, 0)
    for _ in range(rest):
        lane.add_weights()
        lane.add(INPUTS, 0)
    return [*lane.tasks, *lane.put_off]


def dualpipe_order(P: int, M: int) -> Order:
    """DualPipe: rank p holds stage p of one stream and stage P - 1 - p of the other; M / 2 micro-batches from each end.

    Raises:
        ValueError: P or M is odd, or there are fewer than 2 P micro-batches.
    """
    if P % 2 or M % 2 or M < 2 * P:
        raise ValueError(f"DualPipe needs even P and M, and M >= 2 P; got P={P}, M={M}")
    order = []
    for p in range(P):
        near, back = min(p, P - 1 - p), int(p >= P // 2)
        order.append(two_chunk_tasks(near, P // 2, M // 2, (near, P - 1 - near), (back, 1 - back)))  # V3 Fig. 5
    return order


def dualpipe_v_order(P: int, M: int) -> Order:
    """DualPipeV: P stages on P / 2 ranks; a micro-batch runs down all ranks and up again, first and last stage meet.

    Raises:
        ValueError: P is odd, or there are fewer than P micro-batches.
    """
    if P % 2 or M < P:
        raise ValueError(f"DualPipeV needs even P and M >= P; got P={P}, M={M}")
    return [two_chunk_tasks(p, P // 2, M, (p, P - 1 - p), (0, 0)) for p in range(P // 2)]


def bubble_formula(name: str, P: int, times: Times) -> float:
    """Compute the bubble of a rank in closed form.

        GPipe, 1F1B  (P - 1)(F + B)        ZB1P  (P - 1)(F + B - 2W)
        DualPipe, DualPipeV  (P/2 - 1)(F&B + B - 3W)      exact for F = B - W; else the simulation says

    Source: arXiv:2412.19437, Table 2.
    """
    F, B, W, FB = times
    if name in ("GPipe", "1F1B"):
        return (P - 1) * (F + B)
    if name == "ZB1P":
        return (P - 1) * (F + B - 2 * W)
    return (P / 2 - 1) * (FB + B - 3 * W)  # V3 Table 2


SCHEDULES = {
    "GPipe": gpipe_order,
    "1F1B": one_f_one_b_order,
    "ZB1P": zero_bubble_order,
    "DualPipe": dualpipe_order,
    "DualPipeV": dualpipe_v_order,
}


def draw_text(slots: list[list[Slot]], unit: float = 1.0) -> list[str]:
    """Draw a line for each rank, a letter for each unit of time: F, B, O, W, & for a pair, a point for waiting."""
    end = max(rank[-1].end for rank in slots)
    lines = [["·"] * round(end / unit) for _ in slots]
    for line, rank in zip(lines, slots):
        for slot in rank:
            first, last = round(slot.start / unit), round(slot.end / unit)
            line[first:last] = slot.task.kind * (last - first)
    return ["".join(line) for line in lines]


def main() -> None:
    """Draw the schedules with F = O = W = 1, and hold their bubbles to the closed forms."""
    P, M, times = 4, 8, Times()
    for name, make in SCHEDULES.items():
        slots = run_schedule(make(P, M), P, times)
        print(f"{name}, {P} stages, {M} micro-batches on {len(slots)} ranks:")
        print("\n".join("  " + line for line in draw_text(slots)))
        bubbles, memory = measure_bubbles(slots), max(measure_memory(slots))
        print(f"  bubble {max(bubbles):.0f} (Table 2: {bubble_formula(name, P, times):.0f}), held at once: {memory}")


if __name__ == "__main__":
    main()
