"""What Prometheus reads at /metrics: counts and clocks of the server, and the engine's own numbers at the moment."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from deepseek_v3.engine.metrics import Metrics as EngineMetrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """A registry of its own, so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry, self.engine = CollectorRegistry(), EngineMetrics()
        args: Any = {"namespace": "deepseek_v3", "registry": self.registry}
        self.first_token = Histogram("time_to_first_token_seconds", "from request to text", buckets=SECONDS, **args)
        self.between = Histogram("time_between_tokens_seconds", "of one text", buckets=SECONDS, **args)
        self.whole = Histogram("request_seconds", "from request to the end of a text", buckets=SECONDS, **args)
        self.finished = Counter("finished", "texts by the reason of their end", ["reason"], **args)
        self.answers = Counter("http_responses", "answers by path and status", ["path", "status"], **args)
        self.refused = Counter("overloaded", "requests refused because the queue was full", **args)
        self.acceptance = Gauge("acceptance_ratio", "accepted of drafted tokens since the start", **args)
        self.load = Gauge("load", "texts that the server has taken on", **args)

    def text(self, engine: EngineMetrics, load: int) -> bytes:
        """Return all of it in Prometheus' format."""
        self.engine = engine
        self.acceptance.set(engine.accepted / engine.drafted if engine.drafted else 0)
        self.load.set(load)
        return generate_latest(self)  # type: ignore[arg-type]  # it asks for nothing but `collect`

    def collect(self) -> Iterator[Any]:
        """Yield the server's numbers, then the engine's."""
        yield from self.registry.collect()
        for number in fields(EngineMetrics):
            kind = CounterMetricFamily if number.metadata["total"] else GaugeMetricFamily
            name, says = f"deepseek_v3_{number.name}", number.metadata["says"]
            yield kind(name, says, value=getattr(self.engine, number.name))
