"""When drafts pay: what a draft costs in measured time, against how often it becomes text.

    a draft makes a step longer by `draft` seconds, in which plain steps would have brought draft * rows / plain tokens
    it pays if it becomes text more often than that: this is the break-even acceptance

Both times are medians of the last steps with as many rows. The first steps of an engine do not count, since its caches
are cold; plain ones are timed again soon after the first verdict, and then now and then. How often a sequence's first,
second, ... draft becomes text is a running mean that begins at 1. Each draft made is worth more than its time, so all
together are: a step never brings less a second than a plain one, as far as the figures are right. A sequence that makes
no drafts keeps the rows that its modules would have to read (`PATIENCE` tokens long, should neighbours leave and drafts
pay again), then it drafts no more. The choice needs a clock, so only sequences whose tokens do not depend on it are
`adaptive`.

Letters: none.
"""

from collections import defaultdict, deque
from collections.abc import Sequence as Many
from statistics import median

from deepseek_v3.engine.sequence import Sequence

Kind = tuple[int, int]  # of a step: rows that decode, and drafts that are made whatever they cost
WINDOW = 16  # steps whose median counts
ENOUGH = 4  # steps to be measured before they count
COLD = 4  # the first steps of an engine, which take longer than all others
AGAIN = range(16, 20)  # of the steps with as many rows, those that time plain ones again
REFRESH = 64  # every so many steps one without drafts, so that its time stays true


class StepCosts:
    """Measured times of steps: by how many rows decode, and how many drafts are made whatever they cost."""

    def __init__(self) -> None:
        self.plain: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self.drafting: defaultdict[Kind, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self.steps: defaultdict[Kind, int] = defaultdict(int)
        self.now, self.all_steps = (0, 0), 0

    def look(self, running: Many[Sequence]) -> None:
        """See what the next step will be like; where nobody asks whether drafts pay, no step is timed."""
        if not any(sequence.adaptive for sequence in running):
            self.now = 0, 0
            return
        decoding = [sequence for sequence in running if sequence.decoding]
        self.now = len(decoding), sum(sequence.drafts for sequence in decoding if not sequence.adaptive)

    def observe(self, rows: int, drafts: int, seconds: float) -> None:
        """Note a step in which all rows decoded, and how many drafts adaptive sequences made."""
        if rows != self.now[0]:
            return  # not what was looked at: some have waited
        self.all_steps += 1
        if self.all_steps <= COLD:
            return
        self.steps[self.now] += 1
        if drafts:
            self.drafting[self.now].append((seconds, drafts))
        else:
            self.plain[self.now].append(seconds)

    @property
    def known(self) -> bool:
        """Whether both times of such a step have been measured."""
        return min(len(self.plain[self.now]), len(self.drafting[self.now])) >= ENOUGH

    def break_even(self) -> float:
        """How often a draft must become text to be worth its time, in a step as the next one."""
        plain = median(self.plain[self.now])
        draft = median((seconds - plain) / drafts for seconds, drafts in self.drafting[self.now])
        return max(0.0, draft) * self.now[0] / plain

    def drafts_of(self, sequence: Sequence) -> int:
        """How many drafts a sequence is to make in the next step."""
        most = sequence.drafts
        if not sequence.adaptive or not most:
            return most
        steps = self.steps[self.now]
        if len(self.plain[self.now]) < ENOUGH or steps in AGAIN or steps % REFRESH == 0:
            return 0
        if len(self.drafting[self.now]) < ENOUGH:
            return most
        least = self.break_even()
        count = next((depth for depth in range(most) if sequence.chances[depth] <= least), most)
        return count if count >= min(most, sequence.modules) else 0  # every module reads, or none: they are a chain
