"""A channel for threads: what batch jobs and benchmarks read an engine through."""

from __future__ import annotations

import queue
from collections.abc import Iterable

from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.request import Delta, GenerationRequest, Stream


class QueueChannel:
    """Hands an engine's news to one consuming thread."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[list[tuple[Stream, Delta]]] = queue.SimpleQueue()

    def deliver(self, news: list[tuple[Stream, Delta]]) -> None:
        """Take the news of one step."""
        self._news.put(news)

    def receive(self, timeout: float | None = None) -> list[tuple[Stream, Delta]]:
        """Wait for the news of one step; raises queue.Empty after `timeout` seconds."""
        return self._news.get(timeout=timeout)


def run_all(engine: Engine, requests: Iterable[GenerationRequest]) -> list[Delta]:
    """Submit requests together and wait for all of them; returns each one's whole output, errors included."""
    channel = QueueChannel()
    outputs = {engine.submit(request, channel): Delta() for request in requests}
    num_open = len(outputs)
    while num_open:
        for stream, delta in channel.receive():
            outputs[stream].merge(delta)
            num_open -= delta.is_last
    return list(outputs.values())
