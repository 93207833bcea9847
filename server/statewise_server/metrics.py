"""Prometheus metrics: calls by code, items, latencies, rows and queues."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.batcher import Batcher
    from statewise_server.repository.repository import ModelEntry

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITL_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class ServerMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, entries: Callable[[], Iterable[ModelEntry]]) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "statewise_calls",
            "Calls that ended, by method and gRPC code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._items = Counter("statewise_items", "Items generated.", ["model"], registry=self.registry)
        self._first = Histogram(
            "statewise_time_to_first_token_seconds",
            "From a request's arrival to its first message.",
            ["model"],
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self._between = Histogram(
            "statewise_inter_token_seconds",
            "Seconds per item, averaged over each message.",
            ["model"],
            buckets=_ITL_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_EngineGauges(entries))
        self.registry.register(_BatchGauges(entries))

    def serve(self, host: str, port: int) -> None:
        """Answer scrapes at `/metrics` from a thread of its own; raises OSError where the port is taken."""
        start_http_server(port, addr=host, registry=self.registry)

    def call_ended(self, method: str, code: str) -> None:
        """Count one call."""
        self._calls.labels(method, code).inc()

    def first_items(self, model: str, num_items: int, seconds: float) -> None:
        """Record a stream's first message, so many seconds after the request came."""
        self._items.labels(model).inc(num_items)
        self._first.labels(model).observe(seconds)

    def later_items(self, model: str, num_items: int, seconds: float) -> None:
        """Record a later message, so many seconds after the one before."""
        if num_items:
            self._items.labels(model).inc(num_items)
            self._between.labels(model).observe(seconds / num_items)


class _EngineGauges(Collector):
    """Rows, queues and health of every loaded model, read when they are scraped."""

    def __init__(self, entries: Callable[[], Iterable[ModelEntry]]) -> None:
        self._entries = entries

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        families: list[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[Engine], float]]] = [
            (gauge("statewise_rows_in_use", "Streams that hold a row.", labels=["model"]), lambda e: e.num_running),
            (gauge("statewise_waiting", "Requests that wait for a row.", labels=["model"]), lambda e: e.num_waiting),
            (gauge("statewise_state_bytes", "Bytes of state held.", labels=["model"]), lambda e: e.state_bytes),
            (gauge("statewise_state_capacity", "Positions per row.", labels=["model"]), lambda e: e.state_capacity),
            (
                gauge("statewise_state_budget_bytes", "Bytes of state that may be held.", labels=["model"]),
                lambda e: e.memory.budget,
            ),
            (counter("statewise_steps", "Steps run.", labels=["model"]), lambda e: e.stats.num_steps),
            (counter("statewise_step_seconds", "Seconds in steps.", labels=["model"]), lambda e: e.stats.busy_seconds),
            (
                counter("statewise_prompt_items", "Prompt items read.", labels=["model"]),
                lambda e: e.stats.num_prompt_items,
            ),
            (
                counter("statewise_cached_prompt_items", "Prompt items loaded, not read.", labels=["model"]),
                lambda e: e.stats.num_cached_items,
            ),
            (
                gauge("statewise_prefix_bytes", "Bytes of saved prompt beginnings.", labels=["model"]),
                lambda e: e.prefixes.num_bytes,
            ),
            (
                counter("statewise_prefix_evictions", "Saved chunks that were given up.", labels=["model"]),
                lambda e: e.prefixes.num_evicted,
            ),
        ]
        healthy = gauge("statewise_healthy", "1 while all that is loaded of the model works.", labels=["model"])
        for entry in self._entries():
            if entry.parts:
                healthy.add_metric([entry.name], all(part.is_healthy for part in entry.parts))
            if entry.engine is not None:
                for family, read in families:
                    family.add_metric([entry.name], read(entry.engine))
        return [healthy, *(family for family, _ in families)]


class _BatchGauges(Collector):
    """Batches of whole sequences, of every graph that is loaded for them, read when they are scraped."""

    def __init__(self, entries: Callable[[], Iterable[ModelEntry]]) -> None:
        self._entries = entries

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        labels = ["model", "graph"]
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        families: list[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[Batcher], float]]] = [
            (
                gauge("statewise_waiting_inputs", "Sequences that wait for a batch.", labels=labels),
                lambda b: b.num_waiting,
            ),
            (counter("statewise_batches", "Batches run.", labels=labels), lambda b: b.stats.num_batches),
            (counter("statewise_batch_rows", "Sequences in them.", labels=labels), lambda b: b.stats.num_rows),
            (counter("statewise_batch_items", "Items in them.", labels=labels), lambda b: b.stats.num_items),
            (
                counter("statewise_batch_padded_items", "Items in them, padding included.", labels=labels),
                lambda b: b.stats.num_padded_items,
            ),
            (
                counter("statewise_batch_wait_seconds", "Seconds that sequences waited for them.", labels=labels),
                lambda b: b.stats.waited_seconds,
            ),
            (counter("statewise_batch_seconds", "Seconds in batches.", labels=labels), lambda b: b.stats.busy_seconds),
        ]
        for entry in self._entries():
            if entry.predictor is not None:
                for graph, batcher in entry.predictor.batchers.items():
                    for family, read in families:
                        family.add_metric([entry.name, graph], read(batcher))
        return [family for family, _ in families]
