"""Steps that fail: which requests end, with which error, and whether the engine goes on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from statewise.errors import (
    InternalError,
    OverloadedError,
    UnavailableError,
)
from statewise.rules.sampling import GREEDY
from statewise_server.engine import Engine, GenerationRequest, Stream
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.engine.request import Delta
from statewise_server.runtime.steps.state_runs import StateRuns
from tests.server.engine.generation.test_engine import EngineOf, last_deltas


@pytest.mark.parametrize("name", ["lstm-2", "transformer"])
def test_a_step_that_raises_fails_its_batch_only(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The batch of a failed run gets InternalError; who waited, and who comes later, gets what it always gets."""
    engine = engine_of(name, max_rows=2)
    request = GenerationRequest(np.array([5, 6, 7]), GREEDY, 9, log_probabilities=2)
    expected = run_all(engine, [request])
    healthy = StateRuns.run
    healthy_runs = iter([True, False])

    def run(runs: StateRuns, *arguments: Any, **named: Any) -> Any:
        # The second run of the batch fails, the first having written state.
        return healthy(runs, *arguments, **named) if next(healthy_runs, True) else 1 / 0

    monkeypatch.setattr(StateRuns, "run", run)
    *failed, waited = run_all(engine, [request] * 3)

    assert [type(output.error) for output in failed] == [InternalError] * 2
    assert "ZeroDivisionError" in str(failed[0].error)
    assert [waited] == expected == run_all(engine, [request])
    assert engine.is_healthy
    assert engine.num_running == engine.num_waiting == 0


class GapChannel(QueueChannel):
    """Notes, whenever a stream gains items, how many prompt items the engine had read by then."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.prompt_items_read: dict[Stream, list[int]] = defaultdict(list)

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        assert self.engine is not None
        for stream, delta in events:
            if delta.items:
                self.prompt_items_read[stream].append(self.engine.stats.num_prompt_items)
        super().deliver(events)

    def largest_gap(self, stream: Stream) -> int:
        """Most prompt items read between two deliveries to the stream."""
        return int(np.diff(self.prompt_items_read[stream]).max())


@pytest.mark.parametrize(("chunk", "budget"), [(16, 16), (16, 40), (512, 512)])
@pytest.mark.parametrize("name", ["lstm-2", "transformer"])
def test_long_prompts_hold_up_running_streams_by_one_budget(
    engine_of: EngineOf, name: str, chunk: int, budget: int
) -> None:
    """Between two items of a running stream no more prompt items are read than the budget; a large one shows it."""
    engine = engine_of(name, max_rows=8, prefill_chunk=chunk, token_budget=budget, decode_ms=0.01)
    channel = GapChannel()
    channel.engine = engine
    running = [engine.submit(GenerationRequest(np.array([5]), GREEDY, 300), channel) for _ in range(5)]
    while len(channel.prompt_items_read) < len(running):
        time.sleep(0.001)
    longest = [engine.submit(GenerationRequest(np.zeros(380, np.int64), GREEDY, 2), channel) for _ in range(2)]
    ended = last_deltas(channel, len(running) + len(longest))

    assert {ended[stream].finish_reason for stream in (*running, *longest)} == {"length"}
    gaps = [channel.largest_gap(stream) for stream in running]
    assert max(gaps) <= budget
    assert max(gaps) >= min(380, chunk)


def test_a_step_without_memory_is_overload(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run finds no memory its requests may come again; the engine goes on."""
    engine = engine_of("lstm-2", max_rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "step", raising("Failed to allocate memory for requested buffer of size 4096"))
        (failed,) = run_all(engine, [GenerationRequest(np.array([5]), GREEDY, 5)])

    assert isinstance(failed.error, OverloadedError)
    assert run_all(engine, [GenerationRequest(np.array([5]), GREEDY, 5)])[0].finish_reason == "length"


def test_a_device_that_has_failed_ends_the_engine(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests are told, though no row can be moved any more; the engine is unhealthy and takes nothing new."""
    engine = engine_of("lstm-2", max_rows=2)
    failure = raising("CUDA failure 700: an illegal memory access was encountered ; GPU=0")
    for action in ("step", "decode", "copy_row", "swap_rows"):
        monkeypatch.setattr(engine._runner, action, failure)

    outputs = run_all(engine, [GenerationRequest(np.array([5]), GREEDY, 5) for _ in range(5)])

    assert {type(output.error) for output in outputs} == {UnavailableError}
    assert not engine.is_healthy
    assert engine.num_running == engine.num_waiting == 0
    with pytest.raises(UnavailableError, match="has failed"):
        engine.submit(GenerationRequest(np.array([5]), GREEDY, 5), QueueChannel())


def raising(text: str) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(text)

    return fail
