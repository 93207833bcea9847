"""The engine over steps that are captured: rows come and go, and the pool grows and moves."""

from __future__ import annotations

from collections.abc import Iterator

from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.queue_channel import run_all
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.state.memory import HOST, Memory
from tests.models import draft_bundle
from tests.server.captures import VARIANT, Recorder, runner_of
from tests.server.engine.generation.test_invariance import ragged_requests


def engine_of(recorder: Recorder | None, memory: Memory) -> Engine:
    """An engine on the Transformer's variant for CUDA, that has begun with room for few positions."""
    bundle, settings = draft_bundle("transformer", VARIANT), EngineSettings(max_rows=4, prefill_chunk=32)
    runner = runner_of(recorder, memory)
    runner.warm_up()
    state_memory = StateMemory.of(settings, bundle.spec(VARIANT), "cpu")
    return Engine(bundle.manifest, VARIANT, runner, None, settings, state_memory)


def then_started(engine: Engine, requests: list[GenerationRequest]) -> Iterator[GenerationRequest]:
    """Have all requests wait before the first step, so that two engines plan the same ones."""
    yield from requests
    engine.start()


def test_captured_steps_change_no_bit() -> None:
    """Ragged requests get from graphs that were captured what they get without."""
    recorder = Recorder()
    engines = [engine_of(recorder, DeviceMemory("cpu")), engine_of(None, HOST)]
    try:
        requests = ragged_requests(16, engines[0].manifest.model.input.vocabulary_size)
        captured, plain = (run_all(engine, then_started(engine, requests)) for engine in engines)
    finally:
        for engine in engines:
            engine.close()

    assert captured == plain
    launched = [graph for graph, captures in recorder.runs if graph > 0 and not captures]
    assert len(recorder.captures) > 4
    assert len(launched) > len(recorder.captures)
