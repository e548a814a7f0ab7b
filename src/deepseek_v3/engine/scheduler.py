"""Who is read in the next step, and how many tokens of whom.

    waiting --start--> running --finish--> gone         preempt: running --> the front of waiting, its blocks free

First come, first served: the oldest takes its tokens of the step first, and who finds no block takes those of the
youngest. So the oldest always gets on, and everybody ends. A sequence that decodes takes one token and its drafts, a
prompt a piece. Which form of the model reads a piece is a matter of the request alone (`piece_of`), so that a token's
bits do not depend on the schedule.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from deepseek_v3.engine.block_pool import BlockPool
from deepseek_v3.engine.draft_costs import StepCosts
from deepseek_v3.engine.request import EngineOptions
from deepseek_v3.engine.sequence import Sequence


class Row(NamedTuple):
    """What a step reads of one sequence: so many known tokens, and drafts behind them."""

    sequence: Sequence
    size: int
    drafts: int
    decoding: bool

    @property
    def idle(self) -> bool:
        """Whether it makes no drafts because they do not pay."""
        return self.decoding and self.sequence.adaptive and not self.drafts


@dataclass
class Plan:
    """The rows of a step, and the tokens that it has room for."""

    rows: list[Row]
    left: int
    long: bool = False


class Scheduler:
    """The queue and the running sequences, oldest first, and the pool that their blocks come from."""

    def __init__(self, pool: BlockPool, options: EngineOptions) -> None:
        self.pool, self.options = pool, options
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.costs = StepCosts()
        self.preemptions = self.shared_tokens = 0

    def schedule(self) -> Plan:
        """Choose the rows of the next step and see that every one has its blocks."""
        plan, before = Plan([], self.options.step_tokens), self.preemptions
        self.costs.look(self.running)
        for sequence in tuple(self.running):
            lost = self.preemptions != before and sequence not in self.running  # its blocks, to an older one
            if not lost:
                self.plan_row(plan, sequence)
        while self.preemptions == before and plan.left > 0 and (sequence := self.next_waiting()):
            self.plan_row(plan, self.start(sequence))
        return plan

    def plan_row(self, plan: Plan, sequence: Sequence) -> None:
        """Give a sequence its tokens of the step, if there is room for them."""
        decoding = sequence.decoding
        drafts = self.costs.drafts_of(sequence) if decoding else 0
        count, long = (1, False) if decoding else self.piece_of(sequence, plan.left)
        fits = not plan.long if long else count + drafts <= plan.left
        if count and fits and self.make_room(sequence, sequence.read + count + drafts):
            plan.rows.append(Row(sequence, count, drafts, decoding))
            plan.left -= 0 if long else count + drafts
            plan.long |= long

    def piece_of(self, sequence: Sequence, left: int) -> tuple[int, bool]:
        """Return how many tokens of a prompt to read, and whether as one long piece, apart from the others."""
        grid, short = self.options.long_piece, self.options.short_piece
        end = min(sequence.readable, (sequence.read // grid + 1) * grid) if grid else sequence.readable
        count = end - sequence.read
        return (count, True) if grid and count > short else (min(count, short, left), False)

    def next_waiting(self) -> Sequence | None:
        """The first in the queue, if there are a place and blocks for all that it must read.

        Whose prompt another sequence is still reading is passed over: it will find that in the cache.
        """
        sequence = next((s for s in self.waiting if not s.must_wait), None)
        if sequence is None or len(self.running) >= self.options.max_rows:
            return None
        shared = self.shared_blocks(sequence)
        fits = self.pool.can_take(shared, self.pool.blocks_for(len(sequence.tokens)) - len(shared))
        return sequence if fits else None

    def start(self, sequence: Sequence) -> Sequence:
        """Let a sequence run: with the blocks that hold its beginning, and free ones for the rest."""
        self.waiting.remove(sequence)
        shared = self.shared_blocks(sequence)
        self.pool.share(shared)
        sequence.skip(shared, self.pool.block_size)
        self.shared_tokens += sequence.read
        sequence.blocks.extend(self.pool.allocate(self.pool.blocks_for(len(sequence.tokens)) - len(shared)))
        self.running.append(sequence)
        return sequence

    def shared_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that hold its beginning: never its last token's, which must be read to go on.

        None where the prompt is scored, and so read.
        """
        if not self.options.share_prefixes or sequence.scoring:
            return []
        return self.pool.match_prefix(sequence.tokens[:-1], self.root_of(sequence), sequence.modules)

    def root_of(self, sequence: Sequence) -> bytes:
        """Where its keys begin: what fewer modules have read lacks some rows."""
        return bytes([sequence.modules])

    def make_room(self, sequence: Sequence, tokens: int) -> bool:
        """See that a sequence has blocks for so many tokens; False if it had to give up its own."""
        need = self.pool.blocks_for(tokens) - len(sequence.blocks)
        while need > 0 and not self.pool.can_take((), need):
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return False
        if need > 0:
            sequence.blocks.extend(self.pool.allocate(need))
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks away; it waits in front and will read its tokens again."""
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.restart()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def remember(self, sequence: Sequence) -> None:
        """Let others find the blocks that have become full."""
        if not self.options.share_prefixes:
            return
        for block in range(len(sequence.keys), sequence.settled // self.pool.block_size):
            before = sequence.keys[-1] if block else self.root_of(sequence)
            sequence.keys.append(self.pool.key_of(before, sequence.tokens, block, sequence.modules))
            self.pool.register(sequence.blocks[block], sequence.keys[-1])

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.restart()
