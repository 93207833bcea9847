"""Beam searches as rows among rows: in company, short of rows, cancelled, refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
)
from statewise.model.spec import ModelSpec, RealInput, StateSpec, ValueHead
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.limits import Limits
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.engine.request import BeamParams, Delta
from statewise_server.runtime.steps.runner import Runner
from statewise_server.runtime.steps.state_runs import StateRuns
from tests.models import END, draft_bundle, start_engine

EngineOf = Callable[..., Engine]

NUM_ROWS = 12
NUM_REQUESTS = 24


@pytest.fixture(scope="module")
def engine_of() -> Iterator[EngineOf]:
    """Start engines on models of tests.models, which need no certificate here."""
    engines: list[Engine] = []

    def start(name: str, **given: Any) -> Engine:
        engines.append(start_engine(draft_bundle(name, "cpu-float32"), **given))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def mixed_requests(vocabulary_size: int) -> list[GenerationRequest]:
    """Beam searches of 2 to 8 beams, and sampled and greedy requests, prompts and lengths differing."""
    rng = np.random.default_rng(3)
    requests = []
    for index in range(NUM_REQUESTS):
        prompt = rng.integers(2, vocabulary_size, rng.integers(1, 100))
        request = GenerationRequest(prompt, GREEDY, int(rng.integers(1, 30)), frozenset({END} if index % 3 else ()))
        if index % 2:
            beams = int(rng.integers(2, 9))
            penalty, early = float(rng.uniform(-1, 2)), bool(index % 4 == 1)
            request = replace(request, beam_search=BeamParams(beams, penalty, min(beams, 3), early))
        elif index % 4:
            request = replace(request, sampling=SamplingParams(seed=index, top_p=0.9), log_probabilities=3)
        requests.append(request)
    return requests


@pytest.fixture(scope="module", params=["gru-text", "transformer"])
def crowd(request: pytest.FixtureRequest, engine_of: EngineOf) -> tuple[Engine, list[GenerationRequest], list[Delta]]:
    """An engine of several rows, requests, and what each gives in an engine of its own."""
    shared = {"prefill_chunk": 16}
    engine = engine_of(request.param, max_rows=NUM_ROWS, token_budget=64, prefix_memory=1_000_000, **shared)
    alone = engine_of(request.param, max_rows=8, prefix_memory=0, **shared)
    requests = mixed_requests(engine.manifest.model.input.vocabulary_size)
    return engine, requests, [run_all(alone, [one])[0] for one in requests]


def serve(engine: Engine, requests: Mapping[int, GenerationRequest], cancelled: Mapping[int, int]) -> dict[int, Delta]:
    """Serve requests together; some are cancelled after so many deliveries of the engine."""
    channel = QueueChannel()
    streams = {engine.submit(request, channel): index for index, request in requests.items()}
    outputs = {index: Delta() for index in requests}
    num_deliveries = 0
    while not all(output.is_last for output in outputs.values()):
        for stream, delta in channel.receive(timeout=60):
            assert not outputs[streams[stream]].is_last
            outputs[streams[stream]].merge(delta)
        num_deliveries += 1
        for stream, index in streams.items():
            if cancelled.get(index) == num_deliveries:
                engine.cancel(stream)
    return outputs


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(NUM_REQUESTS)),
    cancelled=st.dictionaries(st.integers(0, NUM_REQUESTS - 1), st.integers(1, 30), max_size=8),
)
def test_a_search_finds_the_same_whoever_comes_and_goes(
    crowd: tuple[Engine, list[GenerationRequest], list[Delta]], order: list[int], cancelled: dict[int, int]
) -> None:
    """In every order of arrival, and whoever is cancelled, each gets bit for bit what it gets alone; no row is lost."""
    engine, requests, alone = crowd

    outputs = serve(engine, {index: requests[index] for index in order}, cancelled)

    for index, output in outputs.items():
        if isinstance(output.error, CancelledError):
            assert index in cancelled
        else:
            assert (output.items, output.log_probabilities) == (alone[index].items, alone[index].log_probabilities)
            assert output.hypotheses == alone[index].hypotheses
    assert engine.num_running == engine.num_waiting == 0


@pytest.mark.parametrize("name", ["gru-text", "transformer"])
def test_searches_that_want_more_rows_than_are_free_wait_for_all_of_them(engine_of: EngineOf, name: str) -> None:
    """Searches of 4 beams on 5 rows run one after the other, long and short requests beside them; nobody is stuck."""
    engine = engine_of(name, max_rows=5)
    search = GenerationRequest(np.array([5, 6]), GREEDY, 20, beam_search=BeamParams(4))
    plain = replace(search, beam_search=None)

    outputs = run_all(engine, [plain, search, search, plain, search, replace(plain, max_tokens=200), search])

    assert {output.finish_reason for output in outputs} == {"length"}
    assert [len(output.hypotheses) for output in outputs] == [0, 1, 1, 0, 1, 0, 1]
    assert outputs[1].items == outputs[1].hypotheses[0].tokens


def test_the_best_hypothesis_is_the_answer_with_its_text(engine_of: EngineOf) -> None:
    """Items, text and finish reason are those of the first hypothesis; an end token gives no text."""
    engine = engine_of("gru-text", max_rows=4)
    request = GenerationRequest(
        np.array([0, 70, 71]), GREEDY, 12, frozenset({END}), beam_search=BeamParams(4, num_hypotheses=4)
    )

    (output,) = run_all(engine, [request])

    best = output.hypotheses[0]
    assert (output.items, output.text, output.finish_reason) == (best.tokens, best.text, best.finish_reason)
    assert [h.text for h in output.hypotheses] == [engine.tokenizer.decode(h.tokens) for h in output.hypotheses]
    assert sorted((h.score for h in output.hypotheses), reverse=True) == [h.score for h in output.hypotheses]


def test_a_deadline_ends_a_search_and_frees_all_its_rows(engine_of: EngineOf) -> None:
    """The caller is told once, and the next request finds every row free."""
    engine = engine_of("gru-text", max_rows=4)
    request = GenerationRequest(np.array([5]), GREEDY, 60000, beam_search=BeamParams(4))

    (output,) = run_all(engine, [replace(request, deadline=time.monotonic() + 0.2)])

    assert type(output.error) is DeadlineExceededError
    assert engine.num_running == 0
    assert run_all(engine, [replace(request, max_tokens=3)])[0].finish_reason == "length"


@pytest.mark.parametrize(("part", "action"), [(StateRuns, "run"), (Runner, "copy_row")])
def test_a_search_whose_step_fails_is_told_once(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch, part: Any, action: str
) -> None:
    """Whether the run fails or the moving of its rows: one error, no row lost, and the next search is well."""
    engine = engine_of("gru-text", max_rows=4)
    request = GenerationRequest(np.array([5, 6, 7]), GREEDY, 9, beam_search=BeamParams(4))
    expected = run_all(engine, [request])
    healthy, runs = getattr(part, action), iter([True] * 3 + [False])

    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        return healthy(self, *arguments, **named) if next(runs, True) else 1 / 0

    monkeypatch.setattr(part, action, run)
    outputs = serve(engine, {0: request}, {})

    assert type(outputs[0].error) is InternalError
    assert run_all(engine, [request]) == expected
    assert engine.is_healthy
    assert engine.num_running == 0


def test_a_waiting_search_counts_once_against_the_queue(engine_of: EngineOf) -> None:
    """With no room to wait a search is served where all its rows are free, and else refused at once."""
    engine = engine_of("gru-text", max_rows=4, max_waiting=0)
    search = GenerationRequest(np.array([5]), GREEDY, 5, beam_search=BeamParams(3))
    channel = QueueChannel()
    long = engine.submit(GenerationRequest(np.array([5]), GREEDY, 60000), channel)
    assert run_all(engine, [search])[0].finish_reason == "length"
    other = engine.submit(GenerationRequest(np.array([6]), GREEDY, 60000), channel)

    with pytest.raises(OverloadedError, match="limit 0"):
        engine.submit(search, channel)

    engine.cancel(long)
    engine.cancel(other)


def test_other_streams_gain_items_while_a_search_runs(engine_of: EngineOf) -> None:
    """A stream beside a search of many steps is served between these steps."""
    engine = engine_of("gru-text", max_rows=5)
    channel = QueueChannel()
    search = engine.submit(GenerationRequest(np.array([5]), GREEDY, 400, beam_search=BeamParams(4)), channel)
    stream = engine.submit(GenerationRequest(np.array([5]), GREEDY, 300), channel)
    ended = []
    while len(ended) < 2:
        ended += [one for one, delta in channel.receive(timeout=60) if delta.is_last]

    assert ended == [stream, search]


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "one beam": ({"beam_search": BeamParams(1)}, "num_beams", r"must lie in \[2, 16\], got 1"),
    "absurd": ({"beam_search": BeamParams(10**6)}, "num_beams", r"must lie in \[2, 16\]"),
    "rows": ({"beam_search": BeamParams(9)}, "num_beams", "9 beams need as many rows .* room for 8"),
    "none": ({"beam_search": BeamParams(4, num_hypotheses=0)}, "num_hypotheses", r"\[1, 4\].*got 0"),
    "more": ({"beam_search": BeamParams(4, num_hypotheses=5)}, "num_hypotheses", r"\[1, 4\].*got 5"),
    "nan": ({"beam_search": BeamParams(4, float("nan"))}, "length_penalty", "got nan"),
    "penalty": ({"beam_search": BeamParams(4, 11.0)}, "length_penalty", r"\[-10, 10\]"),
    "stop": ({"beam_search": BeamParams(4), "stop_strings": ("x",)}, "stop", "does not stop at strings"),
    "log": ({"beam_search": BeamParams(4), "log_probabilities": 1}, "logprobs", "of each hypothesis"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_search_that_cannot_be_is_refused_with_its_field(engine_of: EngineOf, name: str) -> None:
    """The message names the field, the value and what is possible."""
    engine = engine_of("gru-text", max_rows=8)
    changes, field, message = BAD[name]

    with pytest.raises(InvalidRequestError, match=message) as raised:
        engine.submit(replace(GenerationRequest(np.array([5]), GREEDY, 5), **changes), QueueChannel())

    assert raised.value.field is not None
    assert raised.value.field.endswith(field)


def test_a_model_of_vectors_has_no_beams() -> None:
    """Real vectors have no log-probabilities to search by."""
    state = (StateSpec(name="last", shape=("row", 3)),)
    spec = ModelSpec(input=RealInput(features=3), head=ValueHead(features=3), state=state)
    request = GenerationRequest(np.ones((2, 3), np.float32), GREEDY, 5, beam_search=BeamParams(2))

    with pytest.raises(InvalidRequestError, match="real vectors"):
        Limits.of(EngineSettings(), spec).check(request, spec, has_tokenizer=False)
