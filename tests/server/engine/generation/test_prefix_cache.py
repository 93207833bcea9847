"""Saved prompt beginnings: which are found, which are given up, and that no result depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statewise.bundles.reader import open_bundle
from statewise.errors import DataLossError, InternalError
from statewise.model.spec import CategoricalHead, ModelSpec, StateSpec, TokenInput
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, EngineSettings, GenerationRequest, Stream
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.runtime.state.pool import StatePool
from tests.small_bundles import VARIANT, write_bundle

EngineOf = Callable[..., Engine]

CHUNK = 2
SPEC = ModelSpec(
    input=TokenInput(vocabulary_size=100),
    head=CategoricalHead(vocabulary_size=100),
    state=(
        StateSpec(name="sum", shape=("row", 1)),
        StateSpec(name="cache", kind="cache", shape=("row", 1, "position", 1)),
    ),
    max_positions=64,
)


class Prompts:
    """Reads prompts into a pool whose cache holds the items, and whose other state is their sum."""

    def __init__(self, num_chunks: int) -> None:
        memory = StateMemory.of(EngineSettings(state_memory="1MB"), SPEC)
        self.pool = StatePool(SPEC.state, 2, SPEC.max_positions or 0)
        self.cache = PrefixCache(memory, CHUNK, 0)
        self.cache = PrefixCache(memory, CHUNK, num_chunks * self.cache.chunk_bytes)

    def load(self, prompt: list[int]) -> Sequence:
        request = GenerationRequest(np.array(prompt), GREEDY, 1)
        sequence = Sequence(Stream(request, QueueChannel()), None)
        sequence.row = 0
        self.pool.clear_row(0)
        self.cache.load(sequence, self.pool)
        count = sequence.num_prefilled
        assert self.pool.caches["cache"][0, 0, :count, 0].tolist() == prompt[:count]
        assert self.pool.current["sum"][0, 0] == sum(prompt[:count])
        assert self.pool.num_filled[0] == sequence.stream.num_cached == count
        return sequence

    def read(self, prompt: list[int]) -> int:
        """Read a prompt as an engine does; returns how many items were loaded."""
        sequence = self.load(prompt)
        while sequence.num_prompt_left:
            start = sequence.num_prefilled
            items = prompt[start : start + CHUNK]
            self.pool.caches["cache"][0, 0, start : start + len(items), 0] = items
            self.pool.next["sum"][0, 0] = sum(prompt[: start + len(items)])
            self.pool.commit(slice(0, 1), 2, len(items))
            sequence.num_prefilled += len(items)
            self.cache.save(sequence, self.pool)
        return sequence.stream.num_cached


def test_the_longest_match_is_loaded() -> None:
    """As many whole chunks as two prompts share, and never the last item, whose output is wanted."""
    prompts = Prompts(10)
    prompts.read([1, 2, 3, 4, 5, 6, 7])

    assert [
        prompts.load(prompt).num_prefilled
        for prompt in (
            [1, 2, 3, 4, 5, 6, 7],
            [1, 2, 3, 4, 5, 6],
            [1, 2, 3, 4, 9, 9, 9],
            [1, 2],
            [1, 2, 3],
            [9, 2, 3, 4, 5],
            [3, 4, 5, 6, 7],
        )
    ] == [6, 4, 4, 0, 2, 0, 0]


def test_a_prompt_of_whole_chunks_saves_its_last_one_too() -> None:
    """A longer prompt begins behind all of it."""
    prompts = Prompts(10)
    prompts.read([1, 2, 3, 4])

    assert prompts.read([1, 2, 3, 4, 5]) == 4


def test_the_least_recently_used_is_given_up_first() -> None:
    """Being loaded counts as use, of the whole path; a chunk goes before the one that it follows."""
    prompts = Prompts(4)
    prompts.read([1, 1, 2, 2, 0])
    prompts.read([5, 5, 6, 6, 0])
    prompts.load([1, 1, 2, 2, 0])

    prompts.read([7, 7, 0])
    assert [prompts.load(prompt).num_prefilled for prompt in ([5, 5, 6, 6, 0], [1, 1, 2, 2, 0])] == [2, 4]
    prompts.read([8, 8, 0])

    assert prompts.load([5, 5, 6, 6, 0]).num_prefilled == 2
    assert prompts.load([7, 7, 0]).num_prefilled == 0
    assert prompts.cache.num_evicted == 2


def test_a_prompt_longer_than_the_budget_keeps_its_beginning() -> None:
    """The chunks before it are no room for a chunk, as it could not be found without them."""
    prompts = Prompts(2)
    long = list(range(1, 12))

    assert [prompts.read(long), prompts.read(long)] == [0, 4]
    assert prompts.cache.num_evicted == 0


def test_no_memory_means_no_reuse() -> None:
    """Where not even one chunk fits, nothing is kept."""
    prompts = Prompts(0)

    assert [prompts.read([1, 2, 3]), prompts.read([1, 2, 3])] == [0, 0]
    assert prompts.cache.num_bytes == 0


@given(st.integers(1, 6), st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=12), max_size=30))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_can_be_found_and_fits(num_chunks: int, texts: list[list[int]]) -> None:
    """Whatever is read, the budget holds, every chunk can be reached from the root, and what is loaded is right."""
    prompts = Prompts(num_chunks)
    for text in texts:
        prompts.read(text)
        kept = prompts.cache._chunks
        assert len(kept) <= num_chunks
        assert all(chunk.parent in {b"", *kept} for chunk in kept.values())
        beginning = text[: CHUNK * min(num_chunks, (len(text) - 1) // CHUNK)]
        assert prompts.load(text).num_prefilled == len(beginning)


BLOCKS = st.lists(st.integers(0, 2), max_size=5)
"""Which of three blocks of eight items a prompt begins with."""


@given(data=st.lists(st.tuples(BLOCKS, st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["gru-text", "lstm-2", "transformer", "gru-series"])
def test_results_are_bit_for_bit_what_they_are_without_reuse(
    engine_of: EngineOf, pairs: dict[str, tuple[Engine, Engine]], name: str, data: list[tuple[list[int], int, int]]
) -> None:
    """Prompts that share beginnings, in ragged company, with rows leaving in any order, and chunks being given up."""
    if name not in pairs:
        reusing = engine_of(name, max_rows=3, prefill_chunk=8, token_budget=24, prefix_memory=20_000)
        pairs[name] = reusing, engine_of(name, max_rows=1, prefill_chunk=8, prefix_memory=0)
    reusing, plain = pairs[name]
    requests = [
        GenerationRequest(
            prompt_of(reusing, blocks, tail),
            SamplingParams(seed=tail) if reusing.tokenizer else GREEDY,
            max_tokens,
            log_probabilities=2 if name != "gru-series" else -1,
        )
        for blocks, tail, max_tokens in data
    ]

    expected = [run_all(plain, [request])[0] for request in requests]

    for got in (run_all(reusing, requests), run_all(reusing, requests[::-1])[::-1]):
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.array(one.items), np.array(other.items), strict=True)
            assert one.log_probabilities == other.log_probabilities


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Engine, Engine]]:
    """Engines with and without reuse, by model."""
    return {}


def prompt_of(engine: Engine, blocks: list[int], tail: int) -> Any:
    rng = np.random.default_rng(0)
    reads = engine.manifest.model.input
    if reads.kind == "real":
        items = rng.standard_normal((3, 8, reads.features)).astype(np.float32)
        rest = rng.standard_normal((20, reads.features)).astype(np.float32)
    else:
        items, rest = rng.integers(2, 250, (3, 8)), rng.integers(2, 250, 20)
    return np.concatenate([*(items[block] for block in blocks), rest[:tail]])


def num_cached(engine: Engine, prompt: Any) -> int:
    """Items that the engine loads for a prompt, as its stream tells."""
    channel = QueueChannel()
    stream = engine.submit(GenerationRequest(prompt, GREEDY, 2), channel)
    while not channel.receive(timeout=20)[-1][1].is_last:
        pass
    return stream.num_cached


@pytest.mark.parametrize("name", ["gru-text", "transformer", "gru-series"])
def test_a_stream_says_how_much_of_its_prompt_was_loaded(engine_of: EngineOf, name: str) -> None:
    """None for the first, then whole chunks; of a prompt of exactly two chunks one, as its last item is computed."""
    engine = engine_of(name, max_rows=2, prefill_chunk=8)
    prompts = [prompt_of(engine, blocks, tail) for blocks, tail in (([0, 1], 5), ([0, 1], 5), ([0, 1], 9), ([0, 2], 3))]

    assert [num_cached(engine, prompt) for prompt in (*prompts, prompts[0][:16], prompts[0][:7])] == [
        0,
        16,
        16,
        8,
        8,
        0,
    ]
    assert engine.stats.num_cached_items == 48
    assert engine.stats.num_prompt_items == sum(map(len, prompts)) + 16 + 7 - 48


def test_reuse_can_be_switched_off(engine_of: EngineOf) -> None:
    """With no memory for it, every prompt is read in full."""
    engine = engine_of("transformer", max_rows=1, prefill_chunk=8, prefix_memory=0)
    prompt = prompt_of(engine, [0, 1], 3)

    assert [num_cached(engine, prompt), num_cached(engine, prompt), engine.prefixes.num_bytes] == [0, 0, 0]


def test_a_failed_step_saves_nothing(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt whose run raised is read in full when it comes again."""
    engine = engine_of("lstm-2", max_rows=1, prefill_chunk=8)
    prompt = prompt_of(engine, [0, 1], 3)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "step", lambda *_, **__: 1 / 0)
        (failed,) = run_all(engine, [GenerationRequest(prompt, GREEDY, 2)])

    assert isinstance(failed.error, InternalError)
    assert [num_cached(engine, prompt), num_cached(engine, prompt)] == [0, 16]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    """Chunks up to the one that overflows are kept, that one and what follows are not."""
    settings = EngineSettings(max_rows=1, prefill_chunk=2, state_memory="1MB", intra_op_threads=1)
    engine = Engine.load(open_bundle(write_bundle(tmp_path)), VARIANT, settings)
    engine.start()
    prompt = np.full((9, 2), 1, np.float32)
    prompt[2:4] = 3e38

    (failed,) = run_all(engine, [GenerationRequest(prompt, GREEDY, 1)])
    cached = num_cached(engine, np.concatenate([prompt[:2], np.ones((3, 2), np.float32)]))
    engine.close()

    assert isinstance(failed.error, DataLossError)
    assert (cached, engine.prefixes.num_bytes // engine.prefixes.chunk_bytes) == (2, 2)
