"""The engine in a thread of its own, and the only door to it from the event loop.

    worker = Worker(engine, capacity=64); worker.start()
    job = worker.submit([request, ...], copies)        raises a Problem: the limit holds exactly
    await job.admitted(); async for piece in job: ...; job.cancel()

Commands go in by a queue and are carried out between two steps; what a step brought comes back to the loop in one
piece, whatever the number of sequences: one wake-up a step. The load is counted on the loop's side alone, so two
requests never both take the last place; a place is given back when the engine has let go of the sequence.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from deepseek_v3.engine.engine import Engine, Event
from deepseek_v3.engine.request import Request
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.serving.metrics import Metrics
from deepseek_v3.serving.problems import Problem, ServerFault, bad_request, overloaded

FREED = object()  # news of a job whose client is gone: its places are free
log = logging.getLogger("deepseek_v3.serving")


class Job:
    """The sequences of one HTTP request, and what has come of them."""

    def __init__(self, worker: "Worker", wanted: list[Request], copies: int) -> None:
        self.worker, self.wanted, self.copies = worker, wanted, copies
        self.size = len(wanted) * copies
        self.open = 0  # places that it holds
        self.pieces: asyncio.Queue[tuple[int, Event] | Problem | None] = asyncio.Queue()
        self.began = time.perf_counter()
        self.gone = False

    async def admitted(self) -> None:
        """Wait until the engine has taken all of it.

        Raises:
            Problem: the engine refuses, and why.
        """
        if (said := await self.pieces.get()) is not None:
            raise said if isinstance(said, Problem) else ServerFault()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield events, each behind the number of its choice, until every choice is over, or the client is gone.

        Raises:
            Problem: the engine failed.
        """
        left = self.size
        while left:
            piece = await self.pieces.get()
            if piece is None or self.gone:
                return
            if isinstance(piece, Problem):
                raise piece
            left -= piece[1].finish is not None
            yield piece

    def cancel(self) -> None:
        """Free its blocks; nobody wants the rest. Over and over is once."""
        if self.open and not self.gone:
            self.gone = True
            self.pieces.put_nowait(None)
            self.worker.commands.put(lambda: self.worker.abort(self))


class Worker:
    """Steps the engine while there is something to do.

    Attributes:
        capacity: sequences that may run and wait, all together.
        load: how many do.
        alive: whether the engine can still be asked.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, capacity: int) -> None:
        self.engine, self.metrics, self.capacity = engine, metrics, capacity
        self.load, self.alive = 0, False
        self.commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.jobs: set[Job] = set()
        self.owners: dict[int, tuple[Job, int, float]] = {}  # by sequence: job, choice, when its last token came
        self.thread = Thread(target=self.run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; to be called on the event loop."""
        self.loop, self.alive = asyncio.get_running_loop(), True
        self.thread.start()

    async def close(self) -> None:
        """End the thread; what still runs ends with an error."""
        self.alive = False
        self.commands.put(None)
        await asyncio.to_thread(self.thread.join)

    # on the loop

    def submit(self, wanted: list[Request], copies: int = 1) -> Job:
        """Queue the sequences of a request, all or none.

        Raises:
            Problem: more than can ever run, more than may wait now, or an engine that is gone.
        """
        job = Job(self, wanted, copies)
        if job.size > self.capacity:
            raise bad_request(f"This asks for {job.size} texts at once; {self.capacity} are the most here.", "n")
        if not self.alive:
            raise ServerFault("The server is shutting down.", 503, **{"retry-after": "5"})
        if self.load + job.size > self.capacity:
            self.metrics.refused.inc()
            raise overloaded(self.load)
        self.load, job.open = self.load + job.size, job.size
        self.jobs.add(job)
        self.commands.put(lambda: self.admit(job))
        return job

    def deliver(self, news: list[tuple[Job, Any]]) -> None:
        """Hand out what came of a step or command, and take back the places of what is over."""
        for job, item in news:
            over = item[1].finish is not None if isinstance(item, tuple) else 0 if item is None else job.open
            job.open, self.load = job.open - over, self.load - over
            if not job.open:
                self.jobs.discard(job)
            if item is not FREED:
                job.pieces.put_nowait(item)

    def fail(self, problem: Problem) -> None:
        """Tell everybody who waits that nothing will come."""
        self.alive = False
        self.deliver([(job, problem) for job in tuple(self.jobs)])

    # in the thread

    def run(self) -> None:
        """Carry out commands and steps, one after the other, until it is closed."""
        try:
            while self.obey(wait=not self.engine.sequences):
                if events := self.engine.step():
                    self.tell(self.deliver, [self.describe(event) for event in events])
            problem = ServerFault("The server is shutting down.", 503)
        except BaseException as error:
            problem = ServerFault()
            log.error("the engine stopped", exc_info=error)  # clients are told nothing of it
        self.tell(self.fail, problem)

    def obey(self, *, wait: bool) -> bool:
        """Carry out the commands that wait; False once it is to end."""
        with suppress(Empty):
            while (command := self.commands.get(block=wait)) is not None:
                command()
                wait = False
            return False
        return True

    def tell(self, what: Callable[..., None], *about: Any) -> None:
        """Let the loop do something; if it is closed, nobody is left to be told."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what, *about)

    def admit(self, job: Job) -> None:
        """Put all sequences of a job into the engine's queue, or none."""
        taken: list[Sequence] = []
        try:
            for request in job.wanted:
                taken += self.engine.admit_copies(request, job.copies)
        except ValueError as error:
            for sequence in taken:
                self.engine.abort(sequence.id)
            return self.tell(self.deliver, [(job, bad_request(str(error)))])
        self.owners |= {sequence.id: (job, choice, 0.0) for choice, sequence in enumerate(taken)}
        self.tell(self.deliver, [(job, None)])

    def abort(self, job: Job) -> None:
        """Drop the sequences of a job that still run."""
        mine = [id for id, (owner, _, _) in self.owners.items() if owner is job]
        for id in mine:
            self.engine.abort(id)
            del self.owners[id]
        self.metrics.finished.labels("abort").inc(len(mine))
        self.tell(self.deliver, [(job, FREED)])

    def describe(self, event: Event) -> tuple[Job, tuple[int, Event]]:
        """Say whose an event is, and keep the clocks of its tokens."""
        sequence = event.sequence
        job, choice, last = self.owners[sequence.id]
        now = time.perf_counter()
        if event.tokens:
            if last:
                for _ in event.tokens:
                    self.metrics.between.observe((now - last) / len(event.tokens))
            else:
                self.metrics.first_token.observe(now - job.began)
            self.owners[sequence.id] = job, choice, now
        if event.finish:
            self.metrics.finished.labels(event.finish).inc()
            self.metrics.whole.observe(now - job.began)
            del self.owners[sequence.id]
        return job, (choice, event)
