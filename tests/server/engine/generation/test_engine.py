"""The engine with real graphs: what a request gets, what is refused, and what a fault leaves behind."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from statewise.errors import (
    CancelledError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, GenerationRequest, Stream
from statewise_server.engine.queue_channel import QueueChannel, run_all
from statewise_server.engine.request import Delta
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.state_runs import StateRuns
from tests.models import END, reference_decoder
from tests.server.engine.generation.test_invariance import ragged_requests

EngineOf = Callable[..., Engine]
ENDS = frozenset({END})


@pytest.mark.parametrize("name", ["lstm-2", "gru-text", "rnn-1", "transformer"])
def test_the_engine_gives_the_reference_decoders_tokens(engine_of: EngineOf, name: str) -> None:
    """Greedy and seeded sampled tokens are those of PyTorch with the NumPy rules, over 200 steps."""
    engine = engine_of(name, max_rows=8)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(2, 60, length) for length in (1, 2, 33, 90)]
    params = [GREEDY, SamplingParams(seed=9), SamplingParams(seed=8, top_p=0.7), SamplingParams(seed=7, top_k=9)]

    expected, _ = reference_decoder(name).generate(prompts, params, 200)
    outputs = run_all(engine, [GenerationRequest(p, s, 200) for p, s in zip(prompts, params, strict=True)])

    assert [output.items for output in outputs] == [row.tolist() for row in expected]


def test_real_vectors_are_fed_back(engine_of: EngineOf) -> None:
    """A model of real vectors continues a series as PyTorch does."""
    engine = engine_of("gru-series", max_rows=4)
    prompts = [np.random.default_rng(i).standard_normal((5 + i, 3)).astype(np.float32) for i in range(6)]

    expected, _ = reference_decoder("gru-series").generate(prompts, [GREEDY] * 6, 20)
    outputs = run_all(engine, [GenerationRequest(prompt, GREEDY, 20) for prompt in prompts])

    for output, row in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(np.stack(output.items), row, atol=1e-5)


def test_generation_ends_at_the_end_token_or_at_the_limit(engine_of: EngineOf) -> None:
    """A forced end token ends with `stop`, whichever of several it is; without one the limit ends with `length`."""
    engine = engine_of("gru-text", max_rows=3)
    prompt = np.array([0, 70, 71])
    other = GenerationRequest(prompt, SamplingParams(temperature=0.0, logit_bias={90: 100.0}), 50, ENDS | {90})
    forced = GenerationRequest(prompt, SamplingParams(temperature=0.0, logit_bias={END: 100.0}), 50, ENDS)
    free = GenerationRequest(prompt, SamplingParams(temperature=0.0, logit_bias={END: -100.0}), 50, ENDS)

    stopped, exhausted, ended_otherwise = run_all(engine, [forced, free, other])

    assert (stopped.items, stopped.finish_reason, stopped.text) == ([END], "stop", "")
    assert (len(exhausted.items), exhausted.finish_reason) == (50, "length")
    assert (ended_otherwise.items, ended_otherwise.finish_reason) == ([90], "stop")


def test_a_stop_string_cuts_the_text_before_it(engine_of: EngineOf) -> None:
    """The text ends before the stop string, the tokens with the one that completed it."""
    engine = engine_of("gru-text", max_rows=2)
    request = GenerationRequest(np.array([0, 70]), SamplingParams(temperature=0.0, logit_bias={END: -100.0}), 40, ENDS)
    (whole,) = run_all(engine, [request])
    stop = whole.text[10:12]

    (cut,) = run_all(engine, [GenerationRequest(request.prompt, request.sampling, 40, ENDS, stop_strings=(stop,))])

    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.items == whole.items[: len(cut.items)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": np.array([], np.int64)}, "prompt"),
        ({"prompt": np.array([5, 300])}, "prompt"),
        ({"prompt": np.array([-1])}, "prompt"),
        ({"prompt": np.zeros(101, np.int64)}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"stop_strings": ("a",)}, "stop"),
        ({"log_probabilities": 21}, "logprobs"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"sampling": SamplingParams(top_p=0.0)}, "top_p"),
        ({"sampling": SamplingParams(top_k=-1)}, "top_k"),
        ({"sampling": SamplingParams(logit_bias={300: 1.0})}, "logit_bias"),
    ],
)
def test_a_request_that_can_never_succeed_is_refused_by_field(
    engine_of: EngineOf, change: dict[str, Any], field: str
) -> None:
    """Refused before it takes a place, naming the argument."""
    engine = engine_of("lstm-2", max_prompt_tokens=100, max_tokens=50)
    good = {"prompt": np.array([5, 6]), "sampling": GREEDY, "max_tokens": 5}

    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(GenerationRequest(**{**good, **change}), QueueChannel())

    assert caught.value.field == field
    assert run_all(engine, [GenerationRequest(**good)])[0].finish_reason == "length"


def test_a_bounded_model_takes_what_fits_its_positions(engine_of: EngineOf) -> None:
    """Prompt and output may fill the positions, of which the last item takes none; the message has the numbers."""
    engine = engine_of("transformer", max_rows=2)
    prompt = np.arange(2, 102)

    with pytest.raises(InvalidRequestError, match=r"302 after 100 items .* 400 positions; at most 301 fit"):
        engine.submit(GenerationRequest(prompt, GREEDY, 302), QueueChannel())

    assert (engine.limits.tokens_after(399), engine.limits.tokens_after(400)) == (2, 1)
    assert len(run_all(engine, [GenerationRequest(prompt, GREEDY, 301)])[0].items) == 301


def test_a_prompt_as_long_as_the_limit_gives_one_token(engine_of: EngineOf) -> None:
    """The token takes no position; it is the one that a longer sequence has in its place."""
    engine = engine_of("transformer", max_rows=2, prefill_chunk=400)
    prompt = np.arange(400) % 290 + 2

    (output,) = run_all(engine, [GenerationRequest(prompt, GREEDY, 1, log_probabilities=0)])

    (expected,), _ = reference_decoder("transformer").generate([prompt], [GREEDY], 1)
    assert (output.items, output.finish_reason) == (list(expected), "length")


def test_the_queue_is_bounded_in_requests_and_in_items(engine_of: EngineOf) -> None:
    """What does not fit is refused at once, and what was accepted completes."""
    engine = engine_of("lstm-2", max_rows=1, max_waiting=2, max_waiting_tokens=20, decode_ms=0.01)
    channel = QueueChannel()
    long = GenerationRequest(np.array([5]), GREEDY, 3000)
    running = engine.submit(long, channel)
    while not engine.num_running:
        time.sleep(0.001)
    waiting = [engine.submit(GenerationRequest(np.zeros(8, np.int64), GREEDY, 3), channel)]

    with pytest.raises(OverloadedError, match="prompt items"):
        engine.submit(GenerationRequest(np.zeros(13, np.int64), GREEDY, 3), channel)
    waiting.append(engine.submit(GenerationRequest(np.array([5]), GREEDY, 3), channel))
    with pytest.raises(OverloadedError, match="requests wait"):
        engine.submit(GenerationRequest(np.array([5]), GREEDY, 3), channel)

    engine.cancel(running)
    assert last_deltas(channel, 3)[running].error.__class__ is CancelledError
    assert engine.num_running == engine.num_waiting == 0


def test_cancelling_in_the_queue_in_prefill_and_in_decode_frees_the_place_once(engine_of: EngineOf) -> None:
    """Cancelled streams end with CancelledError, however often they are cancelled; the others are served."""
    engine = engine_of("lstm-2", max_rows=3, prefill_chunk=1, token_budget=3, decode_ms=0.01)
    channel = QueueChannel()
    decoding = engine.submit(GenerationRequest(np.array([5]), GREEDY, 5000), channel)
    prefilling = engine.submit(GenerationRequest(np.zeros(20000, np.int64), GREEDY, 1), channel)
    survivor = engine.submit(GenerationRequest(np.array([7]), GREEDY, 300), channel)
    queued = engine.submit(GenerationRequest(np.array([5]), GREEDY, 5), channel)
    channel.receive(timeout=10)
    for stream in (queued, prefilling, decoding, prefilling):
        engine.cancel(stream)

    last = last_deltas(channel, 4)

    assert {type(last[s].error) for s in (queued, prefilling, decoding)} == {CancelledError}
    assert last[survivor].finish_reason == "length"
    assert engine.num_running == engine.num_waiting == 0


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

    def deliver(self, news: list[tuple[Stream, Delta]]) -> None:
        assert self.engine is not None
        for stream, delta in news:
            if delta.items:
                self.prompt_items_read[stream].append(self.engine.stats.num_prompt_items)
        super().deliver(news)

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


@pytest.mark.parametrize("name", ["lstm-2", "transformer"])
def test_state_in_a_devices_memory_changes_no_bit(engine_of: EngineOf, name: str) -> None:
    """Ragged requests over state that is held, moved and resized as on a GPU get what they get over NumPy's arrays."""
    host, device = (engine_of(name, max_rows=4, prefill_chunk=32) for _ in range(2))
    spec = device._runner.spec
    device._runner.pool = StatePool(spec.state, 4, 64 if spec.has_caches else 0, DeviceMemory("cpu"))
    requests = ragged_requests(16, host.manifest.model.input.vocabulary_size)

    assert run_all(device, requests) == run_all(host, requests)


def test_draining_completes_what_runs_and_refuses_the_rest(engine_of: EngineOf) -> None:
    """During a drain nothing new is accepted; what runs ends as it would have."""
    engine = engine_of("lstm-2", max_rows=2)
    channel = QueueChannel()
    stream = engine.submit(GenerationRequest(np.array([5]), GREEDY, 500), channel)
    engine.drain(grace=20)

    with pytest.raises(UnavailableError):
        engine.submit(GenerationRequest(np.array([5]), GREEDY, 5), channel)
    assert last_deltas(channel, 1)[stream].finish_reason == "length"


def last_deltas(channel: QueueChannel, num_streams: int) -> dict[Any, Any]:
    """Wait until that many streams have ended; their merged output."""
    merged: dict[Any, Any] = {}
    ended = 0
    while ended < num_streams:
        for stream, delta in channel.receive(timeout=20):
            if stream in merged:
                merged[stream].merge(delta)
            else:
                merged[stream] = delta
            ended += delta.is_last
    return merged
