"""The engine: many requests, one step at a time.

    engine = Engine(model, EngineOptions(n_blocks=64))
    sequence = engine.admit(Request([5, 7, 11], max_new_tokens=16))
    while not sequence.finish:
        for event in engine.step(): ...

A token's way: the scheduler gives its sequence a row of the step; the MTP modules draft behind it; the main model reads
the rows of all sequences in one go; the drafts are judged, and what stands is the next text.

Letters: S rows of a sequence, D width, V vocabulary.
"""

from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek_v3.engine.block_pool import BlockPool
from deepseek_v3.engine.request import EngineOptions, Request, check_request
from deepseek_v3.engine.runner import Reading, Runner
from deepseek_v3.engine.sampler import BrokenLogits
from deepseek_v3.engine.scheduler import Row, Scheduler
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.speculative import Proposal, draft_tokens, judge_drafts
from deepseek_v3.model.transformer import DeepseekV3


class Event(NamedTuple):
    """What a step brought to one sequence: new tokens, and why it is over if it is ("stop", "length", "error")."""

    sequence: Sequence
    tokens: list[int]
    finish: str | None = None
    error: str = ""


class Engine:
    """A model, a pool of cache blocks, and the requests that share both. One thread steps it."""

    def __init__(self, model: DeepseekV3, options: EngineOptions) -> None:
        self.model, self.options = model, options
        self.runner = Runner(model, options)
        self.pool = BlockPool(options.n_blocks, options.block_size)
        self.scheduler = Scheduler(self.pool, options)
        self.sequences: dict[int, Sequence] = {}
        self._ids = 0

    def admit(self, request: Request) -> Sequence:
        """Put a request into the queue.

        Raises:
            ValueError: a request that can never be served here, and why.
        """
        check_request(request, self.model, self.options, self.runner.modules)
        sequence = Sequence(self._ids, request, self.model, self.runner.modules)
        self._ids += 1
        self.sequences[sequence.id] = sequence
        self.scheduler.waiting.append(sequence)
        return sequence

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read one plan of the scheduler; return what it brought."""
        clock = perf_counter()
        rows = self.scheduler.schedule().rows
        if not rows:
            return []
        proposals = draft_tokens(self.runner, rows)
        read = self.runner.read([self._ask(row, proposal) for row, proposal in zip(rows, proposals)])
        events = [self._settle(row, proposal, *of_row) for row, proposal, of_row in zip(rows, proposals, read)]
        spent = perf_counter() - clock
        for row in rows:
            row.sequence.statistics.count_time(spent, decoding=row.decoding)
        return [event for event in events if event is not None]

    def _ask(self, row: Row, proposal: Proposal) -> Reading:
        """The known tokens of a row and its drafts; logits are wanted once nothing known is left to read."""
        sequence, end = row.sequence, row.sequence.read + row.size
        wanted = 1 + len(proposal.tokens) if end == len(sequence.tokens) else 0
        return Reading(sequence, [*sequence.tokens[sequence.read : end], *proposal.tokens], sequence.read, wanted)

    def _settle(self, row: Row, proposal: Proposal, hidden_SD: Tensor, logits_SV: Tensor) -> Event | None:
        """Keep what was read for good, let the drafts that fell be forgotten, and see whether the sequence is over."""
        sequence, drafts = row.sequence, proposal.tokens
        if sequence.error:  # in the modules
            return self._fail(sequence, sequence.error)
        tokens: list[int] = []
        stood, sequence.read = 0, sequence.read + row.size
        if choosing := sequence.read == len(sequence.tokens):
            how = sequence.request.rule, sequence.generator
            try:
                stood, token = judge_drafts(logits_SV, drafts, proposal.sources, *how)
            except BrokenLogits as error:
                return self._fail(sequence, f"the logits behind token {sequence.read - 1} are {error}")
            tokens = sequence.accept([*drafts[:stood], token])
        sequence.read += stood  # the latents of rejected drafts lie beyond, unseen
        if sequence.modules:
            sequence.fresh.append(hidden_SD[: row.size + stood])
        if row.decoding:
            sequence.statistics.count_step(len(drafts), stood)
        self.scheduler.remember(sequence)
        if sequence.finish:
            self._end(sequence)
        return Event(sequence, tokens, sequence.finish) if choosing else None

    def _fail(self, sequence: Sequence, error: str) -> Event:
        """End one sequence with an error; the others go on, and nobody reads its latents."""
        sequence.finish, sequence.error = "error", error
        alone = [block for block in sequence.blocks if self.pool.holders[block] == 1]
        self.pool.forget(alone)
        self.runner.erase(alone)
        self._end(sequence)
        return Event(sequence, [], "error", error)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        del self.sequences[sequence.id]

    def abort(self, id: int) -> None:
        """End a sequence whose text nobody wants any more; one that is over already stays as it is."""
        sequence = self.sequences.get(id)
        if sequence is not None:
            sequence.finish = "abort"
            self._end(sequence)

    def refresh(self) -> None:
        """Take over weights that have changed: what has been read is read anew."""
        self.runner.step.refresh()
        for sequence in reversed(tuple(self.scheduler.running)):
            self.scheduler.preempt(sequence)
        self.pool.forget(range(self.pool.n_blocks))

    def check_integrity(self) -> None:
        """Every block is free or in the tables of running sequences: see `BlockPool.check_integrity`."""
        self.pool.check_integrity([sequence.blocks for sequence in self.scheduler.running])
