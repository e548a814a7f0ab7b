"""What Prometheus reads at /metrics: counts and clocks of the server, and the engine's own numbers at the moment."""

import logging
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
GAUGES = {
    "running": "sequences that are being read and written",
    "waiting": "sequences in the queue",
    "blocks": "cache blocks",
    "blocks_free": "cache blocks that nobody holds",
    "blocks_findable": "of the free blocks, those that hold the beginning of a known text",
}
TOTALS = {
    "preemptions": "sequences whose blocks were taken away for others",
    "steps": "steps of the engine",
    "prompt_tokens": "tokens of prompts that were read",
    "shared_tokens": "tokens of prompts that were found in the cache instead",
    "new_tokens": "tokens written",
    "drafted": "tokens that MTP modules proposed",
    "accepted": "of these, tokens that became text",
}
log = logging.getLogger("deepseek_v3.serving")


class Metrics:
    """A registry of its own, so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        args: Any = {"namespace": "deepseek_v3", "registry": self.registry}
        self.first_token = Histogram("time_to_first_token_seconds", "from request to text", buckets=SECONDS, **args)
        self.between = Histogram("time_between_tokens_seconds", "of one text", buckets=SECONDS, **args)
        self.whole = Histogram("request_seconds", "from request to the end of a text", buckets=SECONDS, **args)
        self.finished = Counter("finished", "texts by the reason of their end", ["reason"], **args)
        self.answers = Counter("http_responses", "answers by path and status", ["path", "status"], **args)
        self.refused = Counter("overloaded", "requests refused because the queue was full", **args)
        self.gauges = {name: Gauge(name, said, **args) for name, said in GAUGES.items()}
        self.totals = {name: Counter(name, said, **args) for name, said in TOTALS.items()}
        self.acceptance = Gauge("acceptance_ratio", "accepted of drafted tokens since the start", **args)
        self.load = Gauge("load", "texts that the server has taken on", **args)
        self.known = dict.fromkeys(TOTALS, 0)

    def note_gap(self, seconds: float, tokens: int) -> None:
        """Share the time since the last step among the tokens that came."""
        for _ in range(tokens):
            self.between.observe(seconds / tokens)

    def note_finish(self, reason: str, seconds: float) -> None:
        """Count a text that is over."""
        self.finished.labels(reason).inc()
        self.whole.observe(seconds)

    def note_failure(self, error: BaseException) -> None:
        """Write down why the engine stopped; clients are told nothing of it."""
        log.error("the engine stopped", exc_info=error)

    def text(self, engine: Any, load: int) -> bytes:
        """Take over the engine's numbers and write all of it."""
        for name, gauge in self.gauges.items():
            gauge.set(getattr(engine, name))
        for name, total in self.totals.items():
            value = getattr(engine, name)
            total.inc(max(0, value - self.known[name]))
            self.known[name] = value
        self.acceptance.set(engine.accepted / engine.drafted if engine.drafted else 0)
        self.load.set(load)
        return generate_latest(self.registry)
