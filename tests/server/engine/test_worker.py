"""The lifecycle of a worker, on one whose requests are functions that the thread calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from statewise.errors import InternalError, OverloadedError, StatewiseError, UnavailableError
from statewise_server.engine import worker as lifecycle
from statewise_server.engine.worker import Worker

DEVICE_LOST = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"


class Caller(Worker):
    """Calls functions in turn; each is due `delay` seconds after the call that queued it."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__("calls")
        self._delay = delay
        self._queue: deque[tuple[float, Callable[[], int], Future[int]]] = deque()

    def submit(self, function: Callable[[], int]) -> Future[int]:
        result: Future[int] = Future()
        with self._lock:
            self._check_accepting()
            self._queue.append((time.monotonic() + self._delay, function, result))
            self._lock.notify_all()
        return result

    def _seconds_to_run(self) -> float | None:
        return max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None

    def _run_once(self) -> None:
        _, function, result = self._queue[0]
        try:
            result.set_result(function())
        except Exception as error:
            result.set_exception(self._error_for(error))
        self._queue.popleft()

    def _fail_all(self, error: StatewiseError) -> None:
        with self._lock:
            while self._queue:
                self._queue.popleft()[2].set_exception(error)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that holds a call back; set at the end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def start(gate: threading.Event) -> Iterator[Callable[..., Caller]]:
    """Start callers, which are closed at the end."""
    started: list[Caller] = []

    def run(**options: float) -> Caller:
        started.append(Caller(**options))
        started[-1].start()
        return started[-1]

    yield run
    gate.set()
    for caller in started:
        caller.close()


def failing(error: Exception) -> Callable[[], int]:
    def call() -> int:
        raise error

    return call


def waiting(gate: threading.Event) -> Callable[[], int]:
    return lambda: int(gate.wait(20))


def test_a_run_that_takes_too_long_makes_it_unhealthy_until_it_ends(
    start: Callable[..., Caller], gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a run counts: an idle worker is healthy for ever, and a hung one again once the run has ended."""
    monkeypatch.setattr(lifecycle, "RUN_TIMEOUT_SECONDS", 0.05)
    caller = start()
    time.sleep(0.1)
    assert caller.is_healthy

    result = caller.submit(waiting(gate))
    time.sleep(0.1)
    assert not caller.is_healthy

    gate.set()
    assert result.result(10) == 1
    caller.drain(10)
    assert caller.is_healthy


def test_a_drain_ends_when_the_queue_is_empty_and_refuses_new_requests(start: Callable[..., Caller]) -> None:
    """Queued requests complete, at once after the last one, and a later one is told to go elsewhere."""
    caller = start()
    results = [caller.submit(lambda: time.sleep(0.02) or 7) for _ in range(3)]

    began = time.monotonic()
    caller.drain(60)

    assert time.monotonic() - began < 30
    assert [result.done() for result in results] == [True] * 3
    with pytest.raises(UnavailableError, match="is stopping; try another replica"):
        caller.submit(lambda: 1)


def test_a_drain_takes_no_longer_than_its_grace(start: Callable[..., Caller], gate: threading.Event) -> None:
    """A run that does not end is left running after the grace."""
    caller = start()
    result = caller.submit(waiting(gate))

    began = time.monotonic()
    caller.drain(0.1)

    assert 0.1 <= time.monotonic() - began < 10
    assert not result.done()


def test_closing_fails_waiting_requests_and_leaves_a_hung_run_behind(
    start: Callable[..., Caller], gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` returns though a run hangs; when that ends, so does the thread, and waiting requests fail."""
    monkeypatch.setattr(lifecycle, "CLOSE_TIMEOUT_SECONDS", 0.05)
    caller = start()
    begun = threading.Event()
    running, queued = caller.submit(lambda: begun.set() or int(gate.wait(20))), caller.submit(lambda: 1)
    assert begun.wait(10)
    caller.close()
    assert not running.done()

    gate.set()

    assert running.result(10) == 1
    with pytest.raises(UnavailableError, match="is stopping; retry elsewhere"):
        queued.result(10)


def test_closing_does_not_wait_for_a_request_that_is_not_due(start: Callable[..., Caller]) -> None:
    """A request whose run is due in an hour fails at once."""
    caller = start(delay=3600)
    result = caller.submit(lambda: 1)

    caller.close()

    with pytest.raises(UnavailableError, match="retry elsewhere"):
        result.result(0)


@pytest.mark.parametrize(
    ("error", "expected"), [(ZeroDivisionError(), InternalError), (MemoryError(), OverloadedError)]
)
def test_a_failed_run_fails_its_request_only(
    start: Callable[..., Caller], error: Exception, expected: type[StatewiseError]
) -> None:
    """The request gets an error that says whether to retry; the next one is served."""
    caller = start()
    failed, served = caller.submit(failing(error)), caller.submit(lambda: 5)

    assert isinstance(failed.exception(10), expected)
    assert served.result(10) == 5
    assert caller.is_healthy


def test_an_unusable_device_ends_the_worker(start: Callable[..., Caller]) -> None:
    """All requests fail, the worker is unhealthy, a drain returns, and new requests are refused with the reason."""
    caller = start()
    results = [caller.submit(failing(RuntimeError(DEVICE_LOST))), caller.submit(lambda: 5)]

    for result in results:
        with pytest.raises(UnavailableError, match="has failed; retry elsewhere"):
            result.result(10)
    caller.drain(60)
    assert not caller.is_healthy
    with pytest.raises(UnavailableError, match="CUDA failure 700"):
        caller.submit(lambda: 1)
