"""What a request gets does not depend on who shares its batch, who comes and goes, and how the engine is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.errors import CancelledError
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, GenerationRequest
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.engine.request import Delta
from tests.models import END

NUM_ROWS = 16

CROWDS: dict[str, dict[str, Any]] = {
    "chunks of 16": {"prefill_chunk": 16, "token_budget": 200},
    "chunks of 64, a little prefix memory": {"prefill_chunk": 64, "prefix_memory": 1_000_000},
    "chunks of 64, no prefix reuse, no mixed steps": {"prefill_chunk": 64, "prefix_memory": 0, "mixed_steps": False},
}
"""Settings of the engine that serves many at once; alone a request is read in the same chunks, all of them."""

KINDS = (
    GREEDY,
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.8, top_k=5),
    SamplingParams(seed=3, top_p=0.8),
    SamplingParams(seed=4, min_p=0.1, temperature=1.4),
    SamplingParams(seed=5, repetition_penalty=1.2, frequency_penalty=0.5),
    SamplingParams(seed=6, logit_bias={3: 4.0, 7: -100.0}),
)


def ragged_requests(count: int, vocabulary_size: int, seed: int = 0) -> list[GenerationRequest]:
    """Requests of every kind: greedy, sampled, restricted, penalized, biased, with log-probabilities.

    Their prompts have 1 to 300 items; every other one begins as one of three others do.
    """
    rng = np.random.default_rng(seed)
    beginnings = rng.integers(2, vocabulary_size, (3, 300))

    def prompt(index: int) -> Any:
        length = int(rng.integers(1, 301))
        own = rng.integers(2, vocabulary_size, length)
        shared = int(rng.integers(0, length + 1)) if index % 2 else 0
        return np.concatenate([beginnings[index % 3][:shared], own[shared:]])

    return [
        GenerationRequest(
            prompt=prompt(index),
            sampling=KINDS[index % len(KINDS)],
            max_tokens=int(rng.integers(1, 60)),
            end_tokens=frozenset({END} if index % 3 else ()),
            log_probabilities=int(rng.integers(-1, 4)),
        )
        for index in range(count)
    ]


def parts(output: Delta, count: int | None = None) -> tuple[object, ...]:
    """Return what was generated, cut after so many items."""
    return output.items[:count], output.log_probabilities[:count]


@dataclass(frozen=True, repr=False)
class Crowd:
    """An engine of many rows, and what each request gives in an engine of its own."""

    engine: Engine
    requests: list[GenerationRequest]
    alone: list[Delta]

    def serve(self, requests: Mapping[int, GenerationRequest], cancelled: Mapping[int, int]) -> dict[int, Delta]:
        """Serve some of the requests together, and cancel some of these once they have gained so many items."""
        channel = QueueChannel()
        indices = {self.engine.submit(request, channel): index for index, request in requests.items()}
        outputs = {index: Delta() for index in requests}
        while not all(output.is_last for output in outputs.values()):
            for stream, delta in channel.receive(timeout=60):
                output = outputs[indices[stream]]
                output.merge(delta)
                if len(output.items) >= cancelled.get(indices[stream], 1 << 30):
                    self.engine.cancel(stream)
        return outputs


@pytest.fixture(scope="module", params=CROWDS)
def crowd_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CROWDS[request.param]


@pytest.fixture(scope="module", params=["lstm-2", "gru-text", "rnn-1", "markov", "autoregressive", "transformer"])
def crowd(request: pytest.FixtureRequest, engine_of: Callable[..., Engine], crowd_settings: dict[str, Any]) -> Crowd:
    engine = engine_of(request.param, max_rows=NUM_ROWS, intra_op_threads=1, **crowd_settings)
    chunk = crowd_settings["prefill_chunk"]
    single = engine_of(request.param, max_rows=1, intra_op_threads=1, prefill_chunk=chunk, prefix_memory=0)
    requests = ragged_requests(64, engine.manifest.model.input.vocabulary_size)
    return Crowd(engine, requests, [run_all(single, [one])[0] for one in requests])


def test_a_request_gets_bit_for_bit_the_same_alone_and_among_64(crowd: Crowd) -> None:
    """64 ragged requests on 16 rows, twice: the tokens, text and log-probabilities that each gives alone."""
    for _ in range(2):
        together = run_all(crowd.engine, crowd.requests)

        assert [parts(output) for output in together] == [parts(output) for output in crowd.alone]
        assert [(o.text, o.finish_reason) for o in together] == [(o.text, o.finish_reason) for o in crowd.alone]

    assert crowd.engine.num_running == crowd.engine.num_waiting == 0


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(NUM_ROWS)),
    first=st.integers(0, 63),
    cancelled=st.dictionaries(st.integers(0, NUM_ROWS - 1), st.integers(1, 20), max_size=6),
)
def test_rows_may_leave_in_every_order(crowd: Crowd, order: list[int], first: int, cancelled: dict[int, int]) -> None:
    """Whoever ends or is cancelled first, the others go on as if alone, and nobody gets what is another's."""
    indices = [(first + place) % 64 for place in range(NUM_ROWS)]
    requests = {
        index: replace(crowd.requests[index], max_tokens=min(1 + 2 * rank, crowd.requests[index].max_tokens))
        for index, rank in zip(indices, order, strict=True)
    }

    outputs = crowd.serve(requests, {indices[place]: count for place, count in cancelled.items()})

    for index, output in outputs.items():
        expected = parts(crowd.alone[index], requests[index].max_tokens)
        if isinstance(output.error, CancelledError):
            assert index - first in cancelled or index - first + 64 in cancelled
            expected = parts(crowd.alone[index], len(output.items))
        assert parts(output) == expected
    assert crowd.engine.num_running == crowd.engine.num_waiting == 0


def test_prompts_read_beside_decoding_rows_change_nothing(engine_of: Callable[..., Engine]) -> None:
    """With and without mixed steps all requests get the same, bit for bit."""
    requests = ragged_requests(40, 300)
    mixed, separate = (engine_of("transformer", max_rows=4, prefill_chunk=16, mixed_steps=on) for on in (True, False))

    assert run_all(mixed, requests) == run_all(separate, requests)
    assert mixed.stats.num_mixed_steps > 20
    assert separate.stats.num_mixed_steps == 0
