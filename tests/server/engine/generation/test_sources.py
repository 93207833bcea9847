"""Encoder-decoders in the engine: each request decodes its own source, in company as alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.errors import CancelledError, DataLossError, InvalidRequestError
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.engine.request import BeamParams, Delta, Stream
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.state.pool import StatePool
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import draft_of, make_checkpoint, start_engine
from tests.server.engine.generation.test_beams import serve

LONGEST = 40
NUM_REQUESTS = 16

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "plugin": "transformer_encoder_decoder",
        "vocabulary_size": 61,
        "source_vocabulary_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 128,
    },
    "luong": {
        "plugin": "lstm_encoder_decoder",
        "vocabulary_size": 61,
        "source_vocabulary_size": 50,
        "shared_embeddings": False,
        "hidden_size": 24,
        "num_layers": 2,
    },
    "bahdanau": {
        "plugin": "gru_encoder_decoder",
        "vocabulary_size": 61,
        "source_vocabulary_size": 61,
        "hidden_size": 24,
        "attention": "bahdanau",
    },
    "none": {
        "plugin": "gru_encoder_decoder",
        "vocabulary_size": 61,
        "source_features": 3,
        "hidden_size": 24,
        "attention": "none",
    },
}


class Served:
    """A model in memory, engines that serve it, and its reference."""

    def __init__(self, name: str, folder: Path) -> None:
        options = {**MODELS[name], "max_source_positions": LONGEST}
        checkpoint = make_checkpoint(name, folder / name, options=options)
        self.bundle = draft_of(checkpoint)
        self.spec = self.bundle.spec("cpu-float32")
        self.reference = ReferenceDecoder(checkpoint.module, self.spec)
        self.engines: list[Engine] = []

    def start(self, **given: Any) -> Engine:
        """Serve it under these settings."""
        self.engines.append(start_engine(self.bundle, **given))
        return self.engines[-1]

    def source(self, length: int, seed: int = 0) -> Any:
        """A random source of so many items."""
        rng = np.random.default_rng([seed, length])
        assert self.spec.source is not None
        if self.spec.source.kind == "tokens":
            return rng.integers(0, self.spec.source.vocabulary_size, length)
        return rng.standard_normal((length, self.spec.source.features)).astype(np.float32)


ServedOf = Callable[[str], Served]


@pytest.fixture(scope="module")
def served_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedOf]:
    """Each of the models by its name, made once."""
    every: dict[str, Served] = {}

    def find(name: str) -> Served:
        if name not in every:
            every[name] = Served(name, tmp_path_factory.mktemp("checkpoints"))
        return every[name]

    yield find
    for engine in (engine for model in every.values() for engine in model.engines):
        engine.close()


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest, served_of: ServedOf) -> Served:
    """Each of the models in turn."""
    return served_of(request.param)


@pytest.fixture(scope="module")
def transformer(served_of: ServedOf) -> Served:
    """The Transformer alone."""
    return served_of("transformer")


@pytest.fixture(scope="module")
def crowd(served: Served) -> tuple[Engine, list[Delta]]:
    """An engine of several rows, and what each request gets from one that serves it alone."""
    single = served.start(max_rows=5)
    return served.start(max_rows=8, token_budget=60), [run_all(single, [one])[0] for one in requests_of(served)]


def requests_of(model: Served) -> list[GenerationRequest]:
    """Greedy, sampled and searching requests, whose sources have 1 to LONGEST items."""
    rng = np.random.default_rng(1)
    lengths = [1, LONGEST, 7, 16, 17, *rng.integers(1, LONGEST + 1, NUM_REQUESTS - 5).tolist()]
    requests = []
    for index, length in enumerate(lengths):
        prompt, seed = rng.integers(0, 61, rng.integers(1, 6)), SamplingParams(seed=index, top_k=9)
        request = GenerationRequest(prompt, GREEDY, int(rng.integers(2, 25)), source=model.source(length, index))
        if index % 4 == 1:
            request = replace(request, beam_search=BeamParams(int(rng.integers(2, 6)), num_hypotheses=2))
        requests.append(request if index % 4 != 2 else replace(request, sampling=seed, log_probabilities=2))
    return requests


def test_the_engine_gives_the_reference_decoders_tokens(served: Served) -> None:
    """Ragged sources and prompts together: the tokens of PyTorch, greedy and sampled."""
    engine = served.start(max_rows=6, prefill_chunk=4)
    requests = [replace(request, beam_search=None, max_tokens=20) for request in requests_of(served)]

    outputs = run_all(engine, requests)

    expected, _ = served.reference.generate(
        [r.prompt for r in requests], [r.sampling for r in requests], 20, [r.source for r in requests]
    )
    assert [output.items for output in outputs] == [row.tolist() for row in expected]
    assert engine.num_running == 0


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(NUM_REQUESTS)),
    cancelled=st.dictionaries(st.integers(0, NUM_REQUESTS - 1), st.integers(1, 12), max_size=5),
)
def test_a_request_gets_bit_for_bit_the_same_alone_and_in_company(
    served: Served, crowd: tuple[Engine, list[Delta]], order: list[int], cancelled: dict[int, int]
) -> None:
    """Whoever comes and goes: tokens, log-probabilities and hypotheses are those of an engine of one's own."""
    engine, alone = crowd
    requests = requests_of(served)

    outputs = serve(engine, {index: requests[index] for index in order}, cancelled)

    for index, output in outputs.items():
        if isinstance(output.error, CancelledError):
            assert index in cancelled
        else:
            assert output == alone[index]
    assert engine.num_running == 0


def test_equal_prompts_of_different_sources_share_nothing(served: Served) -> None:
    """The same long prompt again and again: each answer is its own source's, and nothing is taken from another's."""
    engine = served.start(max_rows=2, prefill_chunk=8, prefix_memory=10_000_000)
    prompt = np.arange(40) % 61
    requests = [GenerationRequest(prompt, GREEDY, 6, source=served.source(9, seed)) for seed in (1, 2, 1)]

    outputs = [run_all(engine, [request])[0] for request in requests]

    expected, _ = served.reference.generate([prompt] * 3, [GREEDY] * 3, 6, [r.source for r in requests])
    assert [output.items for output in outputs] == [row.tolist() for row in expected]
    assert engine.stats.num_cached_items == 0


def test_state_in_a_devices_memory_changes_no_bit(served: Served) -> None:
    """Sources are encoded into memory that is held, moved and resized as on a GPU, to the same answers."""
    host, device = (served.start(max_rows=6) for _ in range(2))
    spec = served.spec
    device._runner.pool = StatePool(spec.sized_state, 6, 64 if spec.has_caches else 0, DeviceMemory("cpu"))
    requests = requests_of(served)

    assert run_all(device, requests) == run_all(host, requests)


def test_a_source_that_is_not_finite_fails_alone(transformer: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an encoder overflows, its request gets DataLossError, and the row serves the next one well."""
    engine = transformer.start(max_rows=2)
    request = GenerationRequest(np.array([3]), GREEDY, 5, source=transformer.source(9))
    expected = run_all(engine, [request])
    encode = engine._runner.encode

    def overflow(rows: slice, sources: Any) -> None:
        encode(rows, sources)
        engine._runner.pool.memories["source_value.0"][rows] = np.nan

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "encode", overflow)
        (failed,) = run_all(engine, [request])

    assert type(failed.error) is DataLossError
    assert run_all(engine, [request]) == expected


class SourceChannel(QueueChannel):
    """Notes, whenever a stream gains items, how many source items the engine had read by then."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.read: list[int] = []

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        assert self.engine is not None
        self.read.append(self.engine.stats.num_source_items)
        super().deliver(events)


def test_sources_hold_up_running_streams_by_one_budget(transformer: Served) -> None:
    """However many come at once, between two items of a stream no more is read than the budget, or one source."""
    engine = transformer.start(max_rows=16, token_budget=2 * LONGEST + 2)
    channel = SourceChannel()
    channel.engine = engine
    first = engine.submit(GenerationRequest(np.array([3]), GREEDY, 60, source=transformer.source(5)), channel)
    channel.receive(timeout=20)
    late = [
        engine.submit(GenerationRequest(np.array([3]), GREEDY, 3, source=transformer.source(LONGEST, seed)), channel)
        for seed in range(10)
    ]
    open_streams = {first, *late}
    while open_streams:
        open_streams -= {stream for stream, delta in channel.receive(timeout=20) if delta.is_last}

    assert max(np.diff(channel.read)) == 2 * LONGEST
    assert channel.read[-1] == 5 + 10 * LONGEST


def test_memories_count_against_the_budget_of_state(transformer: Served) -> None:
    """A row's bytes hold the keys and values of the longest source, so fewer rows fit."""
    spec = transformer.spec
    memory_bytes = 2 * 2 * LONGEST * 32 * 4 + 8
    given = EngineSettings(max_rows=64, state_memory=10 * memory_bytes)

    memory = StateMemory.of(given, spec)

    assert memory.bytes_per_row == memory_bytes + 2 * 2 * 128 * 32 * 4 + 2 * 8
    assert memory.rows_at(64) == 10 * memory_bytes // (memory_bytes + 2 * 2 * 64 * 32 * 4 + 2 * 8)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"source": None}, "source", "missing"),
        ({"source": np.array([], np.int64)}, "source", "empty"),
        ({"source": np.zeros(LONGEST + 1, np.int64)}, "source", f"has {LONGEST + 1} items, .* at most {LONGEST}"),
        ({"source": np.array([5, 61])}, "source", "id 61 is outside the vocabulary"),
        ({"source": np.array([-1])}, "source", "id -1"),
    ],
)
def test_a_bad_source_is_refused(transformer: Served, change: dict[str, Any], field: str, message: str) -> None:
    """Before it reaches the engine's thread, with the field, the value and the limit."""
    engine = transformer.engines[0] if transformer.engines else transformer.start()
    request = replace(GenerationRequest(np.array([3]), GREEDY, 5, source=transformer.source(3)), **change)

    with pytest.raises(InvalidRequestError, match=message) as raised:
        engine.submit(request, QueueChannel())

    assert raised.value.field == field


def test_a_bad_source_of_vectors_is_refused(served_of: ServedOf) -> None:
    """Of another width, or not finite; and any source where the model reads none."""
    engine = served_of("none").start()
    request = GenerationRequest(np.array([3]), GREEDY, 5)
    cases = {"has 4 features per item, the model reads 3": np.ones((2, 4)), "NaN": np.full((2, 3), np.nan)}

    for message, source in cases.items():
        with pytest.raises(InvalidRequestError, match=message):
            engine.submit(replace(request, source=source.astype(np.float32)), QueueChannel())
    spec = served_of("none").spec.model_copy(update={"source": None, "max_source_positions": None})
    with pytest.raises(InvalidRequestError, match="reads no source"):
        engine.limits.check(replace(request, source=np.array([1])), spec, has_tokenizer=False)
