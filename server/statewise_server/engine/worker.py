"""The lifecycle that the engine and the batcher share: a thread, its queue's doors, drain, close and failures."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from statewise.errors import StatewiseError, UnavailableError
from statewise_server.runtime.ort.faults import step_error

logger = logging.getLogger(__name__)

RUN_TIMEOUT_SECONDS = 60.0
"""A run that takes longer makes its worker unhealthy."""

CLOSE_TIMEOUT_SECONDS = 10.0


class Worker(ABC):
    """A thread that serves one queue, run by run, until it is closed or its device is unusable.

    `start`, `drain` and `close` may be called from any thread. `_lock` guards the queue; notify it of new work.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Condition()
        self._accepting = True
        self._closing = False
        self._run_started: float | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name=f"{type(self).__name__.lower()}-{model}", daemon=True)

    @abstractmethod
    def _seconds_to_run(self) -> float | None:
        """Return the seconds until a run is due, 0 for now, None while nothing waits; called under the lock."""

    @abstractmethod
    def _run_once(self) -> None:
        """Do one run; called on the thread while a run is due. An exception ends the worker."""

    @abstractmethod
    def _fail_all(self, error: StatewiseError) -> None:
        """Give the error to all requests, running and waiting; the thread's last call. The device may be unusable."""

    @property
    def is_healthy(self) -> bool:
        """Whether the worker has not failed, and no run hangs."""
        started = self._run_started
        hangs = started is not None and time.monotonic() - started > RUN_TIMEOUT_SECONDS
        return self._failure is None and not hangs

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def drain(self, grace: float) -> None:
        """Accept nothing more and wait until all requests have ended, at most `grace` seconds."""
        end = time.monotonic() + grace
        with self._lock:
            self._accepting = False
            self._lock.notify_all()
            while self._is_busy() and self._thread.is_alive() and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)

    def close(self) -> None:
        """End the thread; open requests fail with UnavailableError. A run that hangs is left behind."""
        with self._lock:
            self._accepting = False
            self._closing = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def _check_accepting(self) -> None:
        """Raise UnavailableError after a failure and while stopping; call it under the lock."""
        if self._failure is not None:
            raise UnavailableError(f"model {self._model!r} has failed: {self._failure}")
        if not self._accepting:
            raise UnavailableError(f"model {self._model!r} is stopping; try another replica")

    def _error_for(self, error: Exception) -> StatewiseError:
        """Return the error for the failed run's requests; re-raise if the device is unusable."""
        failure = step_error(error, self._model)
        if isinstance(failure, UnavailableError):
            raise error
        return failure

    def _loop(self) -> None:
        try:
            while self._await_run():
                self._run_once()
        except BaseException as error:
            logger.exception("%s of model %s has failed", type(self).__name__, self._model)
            self._failure = error
        reason = "has failed" if self._failure else "is stopping"
        self._fail_all(UnavailableError(f"model {self._model!r} {reason}; retry elsewhere"))
        self._end_run()

    def _await_run(self) -> bool:
        """Wait until a run is due; False when the worker closes."""
        with self._lock:
            self._end_run()
            while not self._closing and (seconds := self._seconds_to_run()) != 0:
                self._lock.wait(seconds)
            self._run_started = time.monotonic()
            return not self._closing

    def _end_run(self) -> None:
        with self._lock:
            self._run_started = None
            self._lock.notify_all()  # for `drain`

    def _is_busy(self) -> bool:
        return self._run_started is not None or self._seconds_to_run() is not None
