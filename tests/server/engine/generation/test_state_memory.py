"""The budget of an engine's state, and that no result depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from statewise.errors import BundleError, InvalidRequestError, OverloadedError, UnavailableError
from statewise.model.spec import CategoricalHead, ModelSpec, StateSpec, TokenInput
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.generation.state_memory import StateMemory, default_state_memory, format_bytes
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.runtime.ort.free_memory import free_memory
from tests.server.engine.generation.test_invariance import ragged_requests

EngineOf = Callable[..., Engine]

GPT2 = ModelSpec(
    input=TokenInput(vocabulary_size=16000),
    head=CategoricalHead(vocabulary_size=16000),
    state=(
        StateSpec(name="position", dtype="int64", shape=("row",)),
        *(StateSpec(name=f"cache.{i}", kind="cache", shape=("row", 12, "position", 64)) for i in range(24)),
    ),
    max_positions=512,
)
GPT2_POSITION = 24 * 12 * 64 * 4
ONE_LONG_ROW = 400 * 256 + 16
"""Bytes of the tests' Transformer at its 400 positions."""


def memory(spec: ModelSpec = GPT2, **settings: object) -> StateMemory:
    return StateMemory.of(EngineSettings(**settings), spec)


def test_rows_are_traded_for_positions() -> None:
    """The same bytes hold many short requests or few long ones, up to the rows that were asked for."""
    given = memory(state_memory="160MB", max_rows=16)

    assert [given.rows_at(given.capacity_for(count)) for count in (1, 65, 129, 512)] == [16, 16, 8, 4]
    assert given.max_rows == 16
    assert memory(state_memory="60MB", max_rows=16).max_rows == 12


def test_the_budget_is_described_in_one_line() -> None:
    """Rows, positions and bytes of the longest requests, and how many shorter ones there may be."""
    assert memory(state_memory="8GB").describe() == "16 rows x 512 positions, 604 MB state of 8 GB budget"
    short = "4 rows x 512 positions (16 rows for shorter requests), 151 MB state of 160 MB budget"
    assert memory(state_memory="160MB").describe() == short


def test_a_budget_below_one_row_is_refused_with_the_remedy() -> None:
    """The message has both numbers, and what would help; what it names does help."""
    with pytest.raises(BundleError, match=r"512 positions needs 37.7 MB of state, and the budget is 10 MB; raise") as e:
        memory(state_memory="10MB")

    fitting = int(str(e.value).rsplit(" ", 1)[1])
    assert memory(state_memory="10MB", max_positions=fitting).rows_at(fitting) == 1
    with pytest.raises(BundleError):
        memory(state_memory="10MB", max_positions=fitting + 1)


def test_without_a_budget_the_models_share_half_of_the_free_memory() -> None:
    """What is free is shared evenly between the models, and half of it is left."""
    assert default_state_memory("cpu", 4) == pytest.approx(free_memory() / 8, rel=0.2)
    assert memory().budget == pytest.approx(free_memory() / 2, rel=0.2)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (999_700, "1 MB"), (37_748_736, "37.7 MB")])
def test_bytes_are_written_with_three_digits(count: int, text: str) -> None:
    """Numbers of bytes are short enough to be read."""
    assert format_bytes(count) == text


def test_results_do_not_depend_on_capacity(engine_of: EngineOf) -> None:
    """Alone in little room, or beside a request that makes the pool grow and later shrink: the same, bit for bit."""
    requests = ragged_requests(12, 300, seed=3)
    long = GenerationRequest(np.arange(2, 102), SamplingParams(seed=8), 300)
    alone = engine_of("transformer", max_rows=1)
    crowded = engine_of("transformer", max_rows=6, state_memory=4 * ONE_LONG_ROW)

    expected = [run_all(alone, [request])[0] for request in (*requests, long)]
    capacities = []
    channel = QueueChannel()
    streams = [crowded.submit(request, channel) for request in (*requests[:6], long, *requests[6:])]
    outputs = {}
    while len([s for s in outputs if outputs[s].is_last]) < len(streams):
        for stream, delta in channel.receive(timeout=20):
            if stream in outputs:
                outputs[stream].merge(delta)
            else:
                outputs[stream] = delta
        capacities.append(crowded.state_capacity)
    got = {id(stream.request): delta for stream, delta in outputs.items()}

    assert [got[id(request)] for request in (*requests, long)] == expected
    assert 400 in capacities
    assert min(capacities) < 400


def test_growth_under_load_completes_everything(engine_of: EngineOf) -> None:
    """Many requests of all lengths on the memory of one long row: each is answered, and the budget is kept."""
    engine = engine_of("transformer", max_rows=8, state_memory=ONE_LONG_ROW)
    rng = np.random.default_rng(0)
    lengths = [int(rng.choice([5, 30, 100, 200])) for _ in range(24)]

    outputs = run_all(engine, [GenerationRequest(np.arange(2, 2 + n), GREEDY, n) for n in lengths])

    assert [len(output.items) for output in outputs] == lengths
    assert engine.state_bytes <= ONE_LONG_ROW
    assert engine.num_running == engine.num_waiting == 0


def test_without_state_memory_requests_wait_in_the_bounded_queue(engine_of: EngineOf) -> None:
    """Rows that exist in number but not in memory are no room: what waits is bounded as if all rows were taken."""
    engine = engine_of("transformer", max_rows=8, max_waiting=1, state_memory=ONE_LONG_ROW, decode_ms=0.01)
    channel = QueueChannel()
    request = GenerationRequest(np.arange(2, 4), GREEDY, 398)
    streams = [engine.submit(request, channel)]
    while not engine.num_running:
        time.sleep(0.001)
    streams.append(engine.submit(request, channel))

    with pytest.raises(OverloadedError, match="1 streams run and 1 requests wait"):
        engine.submit(request, channel)

    for stream in streams:
        engine.cancel(stream)
    while engine.num_running or engine.num_waiting:
        time.sleep(0.001)


def test_the_operator_may_lower_the_positions_of_a_request(engine_of: EngineOf) -> None:
    """A request that can never fit is refused at once with the numbers; one that just fits is served."""
    bounded, unbounded = engine_of("transformer", max_positions=100), engine_of("lstm-2", max_positions=100)

    for engine in (bounded, unbounded):
        with pytest.raises(
            InvalidRequestError, match=r"92 after 10 items exceed .* limit of 100 positions; at most 91 fit"
        ):
            engine.submit(GenerationRequest(np.arange(2, 12), GREEDY, 92), QueueChannel())
        assert len(run_all(engine, [GenerationRequest(np.arange(2, 12), GREEDY, 91)])[0].items) == 91


def test_a_place_that_cannot_be_made_fails_who_runs_and_no_one_else(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory runs out as the pool grows, the rows are given up with RESOURCE_EXHAUSTED and the loop lives."""
    engine = engine_of("transformer", max_rows=2)
    (before,) = run_all(engine, [GenerationRequest(np.array([5]), GREEDY, 5)])

    def run_out(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner.pool, "_moved", run_out)
        (failed,) = run_all(engine, [GenerationRequest(np.arange(2, 100), GREEDY, 100)])

    assert isinstance(failed.error, OverloadedError)
    assert engine.num_running == 0
    assert run_all(engine, [GenerationRequest(np.array([5]), GREEDY, 5)]) == [before]


def test_a_device_that_fails_as_the_pool_grows_ends_the_engine(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was to be placed and who waits are told to go elsewhere; the engine is unhealthy."""
    engine = engine_of("transformer", max_rows=1)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    monkeypatch.setattr(engine._runner.pool, "_moved", fail)
    outputs = run_all(engine, [GenerationRequest(np.arange(2, 100), GREEDY, 100)] * 3)

    assert {type(output.error) for output in outputs} == {UnavailableError}
    assert not engine.is_healthy
    assert engine.num_running == engine.num_waiting == 0
