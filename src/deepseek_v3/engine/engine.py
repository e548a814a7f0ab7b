"""The engine: many requests, one step at a time.

    engine = Engine(model, EngineOptions(n_blocks=64), stream=tokenizer.stream)
    sequence = engine.admit(Request([5, 7, 11], max_new_tokens=16))
    while not sequence.finish:
        for event in engine.step(): ...

A token's way: the scheduler gives its sequence a row of the step; the MTP modules draft behind it; the main model reads
the rows of all sequences in one go; the logits are steered, the drafts are judged, and what stands is the next text.

Letters: S rows of a sequence, D width, V vocabulary.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import torch

from deepseek_v3.engine.block_pool import BlockPool
from deepseek_v3.engine.draws import Drawn, draw_together
from deepseek_v3.engine.metrics import Metrics
from deepseek_v3.engine.request import EngineOptions, Request, check_request
from deepseek_v3.engine.runner import Read, Reading, Runner
from deepseek_v3.engine.sampler import BrokenLogits, Score, score_tokens
from deepseek_v3.engine.scheduler import Row, Scheduler
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.speculative import Proposal, draft_tokens, judge_drafts
from deepseek_v3.engine.stop import TokenStream
from deepseek_v3.model.transformer import DeepseekV3


class Event(NamedTuple):
    """What a step brought to one sequence: new tokens, and why it is over if it is ("stop", "length", "error").

    Attributes:
        shown: the text that may be shown now, where the engine makes text.
        scores: of every new token, where they are asked for.
        drafts: what was proposed; the first `stood` of the new tokens are drafts that stood.
    """

    sequence: Sequence
    tokens: list[int]
    finish: str | None = None
    error: str = ""
    shown: str = ""
    scores: Many[Score] = ()
    drafts: Many[int] = ()
    stood: int = 0


class Engine:
    """A model, a pool of cache blocks, and the requests that share both. One thread steps it."""

    def __init__(
        self, model: DeepseekV3, options: EngineOptions, *, stream: Callable[[], TokenStream] | None = None
    ) -> None:
        """Make the cache.

        Args:
            stream: makes a text of tokens that come one by one (`Tokenizer.stream`); without it events have no text.
        """
        self.model, self.options, self.stream = model, options, stream
        self.runner = Runner(model, options)
        self.pool = BlockPool(options.n_blocks, options.block_size)
        self.scheduler = Scheduler(self.pool, options)
        self.sequences: dict[int, Sequence] = {}
        self.totals = Metrics()
        self.clock = perf_counter
        self._ids = 0

    def admit(self, request: Request) -> Sequence:
        """Put a request into the queue.

        Raises:
            ValueError: a request that can never be served here, and why.
        """
        check_request(request, self.model, self.options, self.runner.modules)
        if request.stop and self.stream is None:
            raise ValueError("stop texts need an engine that makes text: Engine(..., stream=tokenizer.stream)")
        sequence = Sequence(self._ids, request, self.model, self.runner.modules, self.stream)
        self._ids += 1
        self.sequences[sequence.id] = sequence
        self.scheduler.waiting.append(sequence)
        return sequence

    def admit_copies(self, request: Request, n: int) -> list[Sequence]:
        """Put n requests with one prompt into the queue, with seeds of their own: seed, seed + 1, ...

        The first one reads and scores the prompt, the others find it in the cache.

        Raises:
            ValueError: as `admit`.
        """
        more = {"prompt_logprobs": None} if request.max_new_tokens else {}
        seeds = [None if request.seed is None else request.seed + i for i in range(1, n)]
        others = [replace(request, seed=seed, **more) for seed in seeds]
        first = self.admit(request)
        sequences = [first, *map(self.admit, others)]
        for sequence in sequences[1:]:
            sequence.prompt_scores = first.prompt_scores
            sequence.leader = first if self.options.share_prefixes else None
        return sequences

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read one plan of the scheduler; return what it brought."""
        start = self.clock()
        rows = self.scheduler.schedule().rows
        if not rows:
            return []
        proposals = draft_tokens(self.runner, rows)
        read = self.runner.read([self._ask(row, proposal) for row, proposal in zip(rows, proposals)])
        drawn = draw_together(rows, proposals, read)
        events = [self._settle(*parts) for parts in zip(rows, proposals, read, drawn)]
        told = [event for event in events if event is not None]
        self._count(rows, proposals, told, self.clock() - start)
        return told

    def _ask(self, row: Row, proposal: Proposal) -> Reading:
        """The known tokens of a row and its drafts; logits are wanted where nothing known is left or scores are."""
        sequence, end = row.sequence, row.sequence.read + row.size
        known = row.size if sequence.scoring else int(end == len(sequence.tokens))
        tokens = [*sequence.tokens[sequence.read : end], *proposal.tokens]
        return Reading(sequence, tokens, sequence.read, known and known + len(proposal.tokens))

    def _settle(self, row: Row, proposal: Proposal, read: Read, ahead: Drawn | None) -> Event | None:
        """Keep what was read for good, let the drafts that fell be forgotten, and see whether the sequence is over."""
        sequence, drafts, stood = row.sequence, proposal.tokens, 0
        tokens: list[int] = []
        scores: list[Score] = []
        if sequence.error:  # in the modules
            return self._fail(sequence, sequence.error)
        sequence.read += row.size
        choosing = sequence.read == len(sequence.tokens)
        try:
            if sequence.request.prompt_logprobs is not None:
                sequence.score_prompt(read.logits_SV, row.size)
            if choosing:
                stood, tokens, scores = self._choose(sequence, proposal, read, ahead)
        except BrokenLogits as error:
            return self._fail(sequence, f"the logits behind token {sequence.read - 1} are {error}")
        sequence.read += stood  # the latents of rejected drafts lie beyond, unseen
        if sequence.modules:
            sequence.keep_fresh(read.hidden_SD[: row.size + stood], idle=row.idle)
        if row.decoding:
            sequence.statistics.count_step(len(drafts), stood)
            sequence.learn_chances(len(drafts), stood)
        self.scheduler.remember(sequence)
        if sequence.finish:
            self._end(sequence)
        if not choosing:
            return None
        told = min(stood, len(tokens))
        return Event(sequence, tokens, sequence.finish, "", sequence.take_shown(), scores, drafts, told)

    def _choose(
        self, sequence: Sequence, proposal: Proposal, read: Read, ahead: Drawn | None
    ) -> tuple[int, list[int], list[Score]]:
        """Judge the drafts and choose the token behind; return how many stand, what became text, and its scores."""
        if not sequence.limit:  # only the prompt is asked about
            return 0, sequence.accept([]), []
        drafts, how = proposal.tokens, (sequence.request.rule, sequence.generator)
        logits_SV = read.last_logits(1 + len(drafts))
        if ahead is not None:
            stood, token = 0, ahead.token
        else:
            stood, token = judge_drafts(sequence.steer(logits_SV, drafts), drafts, proposal.sources, *how)
        tokens, top = sequence.accept(drawn := [*drafts[:stood], token]), sequence.request.logprobs
        if sequence.trace is not None:
            taken = drawn[: len(tokens) + (sequence.finish == "stop")]
            if ahead is not None:
                sequence.trace.add(taken, [ahead.logprob])
            else:
                sequence.trace.note(logits_SV, taken, how[0])
        return stood, tokens, [] if top is None else score_tokens(logits_SV[: len(tokens)], tokens, top)

    def _count(self, rows: Many[Row], proposals: Many[Proposal], events: Many[Event], spent: float) -> None:
        """Note the time of a step, and what it was for."""
        for row in rows:
            row.sequence.statistics.count_time(spent, decoding=row.decoding)
            self.totals.prompt_tokens += 0 if row.decoding else row.size
        self.totals.steps += 1
        for event in events:
            self.totals.new_tokens += len(event.tokens)
            self.totals.drafted += len(event.drafts)
            self.totals.accepted += event.stood
        if all(row.decoding for row in rows):
            drafts = sum(len(proposal.tokens) for proposal in proposals if proposal.sequence.adaptive)
            self.scheduler.costs.observe(len(rows), drafts, spent)

    def _fail(self, sequence: Sequence, error: str) -> Event:
        """End one sequence with an error; the others go on, and nobody reads its latents."""
        sequence.finish, sequence.error = "error", error
        alone = [block for block in sequence.blocks if self.pool.holders[block] == 1]
        self.pool.forget(alone)
        self.runner.erase(alone)
        self._end(sequence)
        return Event(sequence, [], "error", error, sequence.take_shown())

    def _end(self, sequence: Sequence) -> None:
        if sequence.trace is not None and sequence.finish in ("stop", "length"):
            sequence.trace.choices = self.runner.choices_of(sequence)
        self.scheduler.finish(sequence)
        del self.sequences[sequence.id]

    def abort(self, id: int) -> None:
        """End a sequence whose text nobody wants any more; one that is over already stays as it is."""
        sequence = self.sequences.get(id)
        if sequence is not None:
            sequence.finish = "abort"
            self._end(sequence)

    def metrics(self) -> Metrics:
        """Say what it is doing, and has done since it was made; any thread may ask."""
        scheduler, pool = self.scheduler, self.pool
        return replace(
            self.totals,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            preemptions=scheduler.preemptions,
            shared_tokens=scheduler.shared_tokens,
            blocks=pool.n_blocks,
            blocks_free=len(pool.free),
            blocks_findable=sum(not holders and key is not None for holders, key in zip(pool.holders, pool.keys)),
        )

    def block_map(self) -> list[int]:
        """Say of every block how many sequences hold it: 0 is free, -1 free with a beginning that can be found."""
        found = [key is not None for key in self.pool.keys]
        return [holders or -int(known) for holders, known in zip(self.pool.holders, found)]

    def refresh(self) -> None:
        """Take over weights that have changed: what has been read is read anew."""
        self.runner.step.refresh()
        for sequence in reversed(tuple(self.scheduler.running)):
            self.scheduler.preempt(sequence)
        self.pool.forget(range(self.pool.n_blocks))

    def check_integrity(self) -> None:
        """Every block is free or in the tables of running sequences: see `BlockPool.check_integrity`."""
        self.pool.check_integrity([sequence.blocks for sequence in self.scheduler.running])
