import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from statewise.errors import (
    DataLossError,
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    UnavailableError,
)
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.whole_sequences.batcher import Batcher
from statewise_server.runtime.one_shot import OneShotRunner
from tests.small_encoders import NAN_TOKEN, UNKNOWN_TOKEN, sums_runner

Start = Callable[..., Batcher]


class Gated:
    """The real runner behind a gate, which says what ran and lets a test hold a run back."""

    def __init__(self, runner: OneShotRunner) -> None:
        self.runner = runner
        self.bucket_of = runner.bucket_of
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run_rows(self, rows: Sequence[Any], width: int) -> list[dict[str, Any]]:
        self.batches.append([len(row) for row in rows])
        assert self.gate.wait(10)
        return self.runner.run_rows(rows, width)


@pytest.fixture
def gated() -> Gated:
    return Gated(sums_runner())


@pytest.fixture
def start(gated: Gated) -> Iterator[Start]:
    """Start a batcher on the runner, with settings; all are closed at the end."""
    started = []

    def run(token_budget: int = 8192, **settings: Any) -> Batcher:
        batcher = Batcher("sums", gated, EngineSettings(**settings), token_budget)  # type: ignore[arg-type]
        started.append(batcher)
        return batcher

    yield run
    gated.gate.set()
    for batcher in started:
        batcher.close()


def tokens(length: int, token: int = 1) -> Any:
    return np.full(length, token)


def sums(answers: list[Future[dict[str, Any]]]) -> list[float]:
    return [float(answer.result(10)["output"][0]) for answer in answers]


def test_sequences_that_come_together_share_a_run(start: Start, gated: Gated) -> None:
    """Those of one bucket run together and each gets its own answer; another bucket has a run of its own."""
    batcher = start(batch_delay_ms=50)
    answers = [batcher.submit(tokens(length, token)) for token, length in enumerate((3, 16, 2, 17), start=1)]

    assert sums(answers) == [3, 32, 6, 68]
    assert sorted(gated.batches) == [[3, 16, 2], [17]]
    assert (batcher.stats.num_batches, batcher.stats.num_rows, batcher.stats.num_padded_items) == (2, 4, 80)


def test_one_sequence_waits_no_longer_than_the_delay(start: Start) -> None:
    """Alone, a sequence is answered after the delay; a full batch does not wait at all."""
    batcher = start(batch_delay_ms=100, max_batch_rows=2)
    batcher.submit(tokens(1)).result(10)
    began = time.monotonic()
    batcher.submit(tokens(1)).result(10)
    alone = time.monotonic() - began
    began = time.monotonic()
    sums([batcher.submit(tokens(1)), batcher.submit(tokens(1))])
    full = time.monotonic() - began

    assert 0.1 <= alone < 5
    assert full < 0.1


def test_a_batch_is_bounded_in_rows_and_items(start: Start, gated: Gated) -> None:
    """No run has more rows than allowed, nor more items, padding included; one row always fits."""
    batcher = start(token_budget=40, max_batch_rows=3)
    gated.gate.clear()
    first = batcher.submit(tokens(1))
    while not gated.batches:
        time.sleep(0.001)
    answers = batcher.submit_all([tokens(5)] * 3 + [tokens(50)] * 2)
    gated.gate.set()

    assert sums([first, *answers]) == [1, 5, 5, 5, 50, 50]
    assert sorted(gated.batches) == [[1], [5], [5, 5], [50], [50]]


def test_a_failing_run_fails_its_batch_only(start: Start) -> None:
    """Everyone in the batch is told INTERNAL, and the next batch is answered."""
    batcher = start()

    failed = batcher.submit_all([tokens(2), tokens(1, UNKNOWN_TOKEN)])
    for answer in failed:
        with pytest.raises(InternalError, match="a step failed"):
            answer.result(10)
    assert sums([batcher.submit(tokens(2))]) == [2]
    assert batcher.is_healthy


def test_an_answer_that_is_not_finite_is_data_loss_for_its_row_alone(start: Start) -> None:
    """NaN in one row leaves the others of the batch as they are."""
    good, bad = start().submit_all([tokens(2), tokens(1, NAN_TOKEN)])

    assert sums([good]) == [2]
    with pytest.raises(DataLossError, match="NaN or infinite"):
        bad.result(10)


def test_what_is_late_or_cancelled_is_not_run(start: Start, gated: Gated) -> None:
    """While a run goes on, a waiting sequence may pass its deadline or be cancelled; neither is computed."""
    batcher = start()
    gated.gate.clear()
    first = batcher.submit(tokens(1))
    while not gated.batches:
        time.sleep(0.001)
    late = batcher.submit(tokens(2), deadline=time.monotonic() + 0.01)
    cancelled, kept = batcher.submit(tokens(3)), batcher.submit(tokens(4))
    assert cancelled.cancel()
    time.sleep(0.02)
    gated.gate.set()

    assert sums([first, kept]) == [1, 4]
    with pytest.raises(DeadlineExceededError):
        late.result(10)
    assert gated.batches == [[1], [4]]
    assert batcher.num_waiting == 0


def test_the_queue_is_bounded_and_takes_all_or_none(start: Start, gated: Gated) -> None:
    """What does not fit is refused at once and whole; what was there before is answered."""
    batcher = start(max_waiting_inputs=3, max_waiting_tokens=20)
    gated.gate.clear()
    first = batcher.submit(tokens(1))
    while not gated.batches:
        time.sleep(0.001)
    waiting = batcher.submit_all([tokens(5), tokens(5)])
    with pytest.raises(OverloadedError, match="2 sequences with 10 items wait"):
        batcher.submit_all([tokens(1), tokens(1)])
    with pytest.raises(OverloadedError, match="limits 3 and 20"):
        batcher.submit(tokens(11))
    assert batcher.num_waiting == 2
    gated.gate.set()

    assert sums([first, *waiting]) == [1, 5, 5]


def test_draining_answers_all_that_waits(start: Start, gated: Gated) -> None:
    """A drain runs what is queued without delay and refuses what is new."""
    batcher = start(batch_delay_ms=1000)
    answers = batcher.submit_all([tokens(1), tokens(20)])

    batcher.drain(10)

    assert all(answer.done() for answer in answers)
    assert sums(answers) == [1, 20]
    with pytest.raises(UnavailableError, match="is stopping"):
        batcher.submit(tokens(1))


def test_of_several_full_batches_the_oldest_runs_first(start: Start, gated: Gated) -> None:
    """Buckets that are filled all the time do not hold up the one that has waited longest."""
    batcher = start(max_batch_rows=2, batch_delay_ms=0)
    gated.gate.clear()
    first = batcher.submit(tokens(1))
    while not gated.batches:
        time.sleep(0.001)
    answers = [batcher.submit(tokens(length)) for length in (40, 2, 20, 3, 41)]
    gated.gate.set()

    assert sums([first, *answers]) == [1, 40, 2, 20, 3, 41]
    assert gated.batches == [[1], [40, 41], [2, 3], [20]]


def test_the_time_that_sequences_wait_is_counted_from_their_arrival(start: Start, gated: Gated) -> None:
    """Over all rows of a batch, until it runs; the run itself is counted apart."""
    batcher = start(max_batch_rows=2, batch_delay_ms=1000)
    first = batcher.submit(tokens(1))
    time.sleep(0.1)
    sums([first, batcher.submit(tokens(1))])
    batcher.drain(10)

    assert 0.1 <= batcher.stats.waited_seconds < 1
    assert 0 < batcher.stats.busy_seconds < 0.1


def test_a_device_that_has_failed_ends_the_batcher(start: Start, gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequences of the run fail with those that wait, and new ones are refused with the reason."""
    batcher = start()
    gated.gate.clear()

    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    monkeypatch.setattr(gated.runner, "run_rows", fail)
    running = batcher.submit(tokens(1))
    while not gated.batches:
        time.sleep(0.001)
    waiting = batcher.submit(tokens(1))
    gated.gate.set()

    for answer in (running, waiting):
        with pytest.raises(UnavailableError, match="has failed; retry elsewhere"):
            answer.result(10)
    assert not batcher.is_healthy
    assert batcher.num_waiting == 0
    with pytest.raises(UnavailableError, match="CUDA failure 700"):
        batcher.submit(tokens(1))


def test_closing_fails_what_waits(start: Start, gated: Gated) -> None:
    """Who still waits when the batcher closes is told to go elsewhere."""
    batcher = start(batch_delay_ms=1000)
    answer = batcher.submit(tokens(1))

    batcher.close()

    with pytest.raises(UnavailableError, match="retry elsewhere"):
        answer.result(10)
