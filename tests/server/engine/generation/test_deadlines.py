"""Deadlines of requests that run and wait together."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from statewise.errors import CancelledError, DeadlineExceededError
from statewise.rules.sampling import GREEDY
from statewise_server.engine import Engine, GenerationRequest
from statewise_server.engine.queue_channel import QueueChannel
from statewise_server.engine.request import BeamParams
from tests.server.engine.generation.test_engine import last_deltas

EngineOf = Callable[..., Engine]


def test_a_deadline_ends_waiting_and_running_requests(engine_of: EngineOf) -> None:
    """A request past its deadline fails with DeadlineExceededError, in the queue without having run."""
    engine = engine_of("lstm-2", max_rows=1)
    channel = QueueChannel()
    soon = time.monotonic() + 0.2
    running = engine.submit(GenerationRequest(np.array([5]), GREEDY, 60000, deadline=soon), channel)
    queued = engine.submit(GenerationRequest(np.array([5]), GREEDY, 5, deadline=time.monotonic() - 1), channel)

    last = last_deltas(channel, 2)

    assert type(last[running].error) is type(last[queued].error) is DeadlineExceededError
    assert last[queued].items == []


def test_each_request_ends_at_its_own_deadline(engine_of: EngineOf) -> None:
    """After the first of four deadlines the second ends its request, not the latest; without one a request runs on."""
    engine = engine_of("lstm-2", max_rows=5)
    channel = QueueChannel()
    now = time.monotonic()

    def submit(deadline: float | None) -> object:
        return engine.submit(GenerationRequest(np.array([5]), GREEDY, 65536, deadline=deadline), channel)

    free, late, second, first = submit(None), submit(now + 3600), submit(now + 0.3), submit(now + 0.1)
    ended = last_deltas(channel, 2)
    assert [type(ended[stream].error) for stream in (first, second)] == [DeadlineExceededError] * 2
    assert time.monotonic() < now + 60

    for stream in (free, late):
        engine.cancel(stream)  # type: ignore[arg-type]
    ended = last_deltas(channel, 2)
    assert [type(ended[stream].error) for stream in (free, late)] == [CancelledError] * 2


def test_a_deadline_ends_a_beam_search_once(engine_of: EngineOf) -> None:
    """Its stream gets one error, and all its rows are free."""
    engine = engine_of("lstm-2", max_rows=4)
    channel = QueueChannel()
    deadline = time.monotonic() + 0.2
    request = GenerationRequest(
        np.array([5]), GREEDY, 65536, deadline=deadline, beam_search=BeamParams(num_beams=3, length_penalty=10.0)
    )
    stream = engine.submit(request, channel)
    after = engine.submit(GenerationRequest(np.array([5]), GREEDY, 4), channel)

    ended = last_deltas(channel, 2)

    assert type(ended[stream].error) is DeadlineExceededError
    assert ended[after].finish_reason == "length"
    engine.drain(10)
    assert engine.num_running == engine.num_waiting == 0
