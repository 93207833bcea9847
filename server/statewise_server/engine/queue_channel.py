"""A channel for threads: through it batch jobs, models in this process and benchmarks read an engine."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator

from statewise.errors import DeadlineExceededError, OverloadedError
from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.request import Delta, GenerationRequest, Stream

_RETRY_SECONDS = 0.005
"""Between two tries where others fill the engine's queue."""


class QueueChannel:
    """Hands an engine's events to one consuming thread."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[list[tuple[Stream, Delta]]] = queue.SimpleQueue()

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        """Take the events of one step."""
        self._events.put(events)

    def receive(self, timeout: float | None = None) -> list[tuple[Stream, Delta]]:
        """Wait for the events of one step; raises queue.Empty after `timeout` seconds."""
        return self._events.get(timeout=timeout)


class BulkRun:
    """Many requests run on an engine, never more at once than it takes, with outputs in the requests' order.

    Iterating gives each request's stream and whole output, an error in it included. A request that cannot be made or
    submitted ends the run with its error, behind the outputs of those before it. However the iteration ends, also where
    it is left early, the rows of all requests are free before the engine's next step.
    """

    def __init__(
        self, engine: Engine, requests: Iterable[GenerationRequest], num_at_once: int, max_finished: int
    ) -> None:
        self._engine = engine
        self._requests = iter(requests)
        self._num_at_once = num_at_once
        self._max_taken = num_at_once + max_finished
        """Requests that were taken and not yielded: it bounds outputs that wait for an earlier one."""
        self._channel = QueueChannel()
        self._next: GenerationRequest | None = None
        self._outputs: dict[Stream, Delta] = {}
        """In the requests' order."""
        self._num_open = 0
        self._is_exhausted = False
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[tuple[Stream, Delta]]:
        try:
            while True:
                self._submit()
                if self._num_open:
                    self._receive()
                elif self._next is not None:
                    time.sleep(_RETRY_SECONDS)
                yield from self._take_finished()
                if self._is_exhausted and not self._outputs and self._next is None:
                    break
            if self._failure is not None:
                raise self._failure
        finally:
            for stream, output in self._outputs.items():
                if not output.is_last:
                    self._engine.cancel(stream)

    def _submit(self) -> None:
        while self._num_open < self._num_at_once and len(self._outputs) < self._max_taken:
            try:
                if self._next is None:
                    self._next = next(self._requests, None)
                if self._next is None:
                    self._is_exhausted = True
                    return
                self._outputs[self._engine.submit(self._next, self._channel)] = Delta()
            except OverloadedError:
                self._check_deadline()
                return  # the engine is full: it has room when a request ends, of this run or of another
            except Exception as error:
                self._failure, self._next, self._is_exhausted, self._requests = error, None, True, iter(())
                return
            self._next = None
            self._num_open += 1

    def _check_deadline(self) -> None:
        assert self._next is not None
        deadline = self._next.deadline
        if not self._num_open and deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceededError("the deadline passed while the engine had no room for the request")

    def _receive(self) -> None:
        for stream, delta in self._channel.receive():
            self._outputs[stream].merge(delta)
            self._num_open -= delta.is_last

    def _take_finished(self) -> Iterator[tuple[Stream, Delta]]:
        while self._outputs:
            stream = next(iter(self._outputs))
            if not self._outputs[stream].is_last:
                return
            yield stream, self._outputs.pop(stream)


def run_all(engine: Engine, requests: Iterable[GenerationRequest]) -> list[Delta]:
    """Run all requests, as many at once as the engine takes; returns each one's whole output, errors included."""
    requests = list(requests)
    return [output for _, output in BulkRun(engine, requests, max(1, len(requests)), 0)]
