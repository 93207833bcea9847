"""Dynamic batching of whole sequences: those that come within a short time share a run, whoever sent them.

A batch holds sequences of one bucket of lengths only, so a sequence is padded to the same width in any company.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import (
    DataLossError,
    DeadlineExceededError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)
from statewise_server.engine.settings import EngineSettings
from statewise_server.runtime.one_shot import OneShotRunner
from statewise_server.runtime.ort.faults import step_error

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Answer = dict[str, Array]

RUN_TIMEOUT_SECONDS = 60.0
"""A run that takes longer makes the batcher unhealthy."""

CLOSE_TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class BatchStats:
    """Totals since the start."""

    num_batches: int = 0
    num_rows: int = 0
    num_items: int = 0
    """Padding not counted."""
    num_padded_items: int = 0
    """Padding counted."""
    waited_seconds: float = 0.0
    """Over all rows, until their run began."""
    busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A sequence that waits for its batch."""

    items: Array
    width: int
    arrived: float
    deadline: float | None
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Runs one graph for many callers, on a thread of its own."""

    def __init__(self, name: str, runner: OneShotRunner, settings: EngineSettings, token_budget: int) -> None:
        self.stats = BatchStats()
        self._name = name
        self._runner = runner
        self._settings = settings
        self._token_budget = token_budget
        self._delay = settings.batch_delay_ms / 1000
        self._waiting: dict[int, list[_Waiting]] = defaultdict(list)
        """By width; none of the lists is empty."""
        self._num_waiting = 0
        self._num_waiting_items = 0
        self._lock = threading.Condition()
        self._accepting = True
        self._closing = False
        self._run_started: float | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name=f"batcher-{name}", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a batch."""
        return self._num_waiting

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives and no run has been going on for too long."""
        started = self._run_started
        hangs = started is not None and time.monotonic() - started > RUN_TIMEOUT_SECONDS
        return self._failure is None and not hangs

    def num_numbers(self, length: int) -> int:
        """Numbers in the answer to a sequence of this length."""
        return self._runner.num_numbers(length)

    def submit(self, items: Array, deadline: float | None = None) -> Future[Answer]:
        """Queue one sequence; as `submit_all`."""
        return self.submit_all([items], deadline)[0]

    def submit_all(self, rows: Sequence[Array], deadline: float | None = None) -> list[Future[Answer]]:
        """Queue sequences, all or none; each future gets the graph's outputs for its row, by name.

        `rows`: int64 `[time]` or float32 `[time, features]`, checked, at least one item each. `deadline`:
        time.monotonic() seconds after which they are not run any more. A future that is cancelled before its run takes
        no part in it.
        Raises OverloadedError where there is no room to wait, UnavailableError where the batcher is stopping.
        """
        now = time.monotonic()
        entries = [_Waiting(items, self._runner.bucket_of(len(items)), now, deadline) for items in rows]
        with self._lock:
            self._check_room(entries)
            for entry in entries:
                self._waiting[entry.width].append(entry)
            self._count(entries, 1)
            self._lock.notify_all()
        return [entry.answer for entry in entries]

    def drain(self, grace: float) -> None:
        """Accept nothing more and wait until all are answered, at most `grace` seconds."""
        end = time.monotonic() + grace
        with self._lock:
            self._accepting = False
            self._lock.notify_all()
            while self._has_work() and self._thread.is_alive() and (left := end - time.monotonic()) > 0:
                self._lock.wait(left)

    def close(self) -> None:
        """End the thread; those that still wait fail with UnavailableError. A run that hangs is left behind."""
        with self._lock:
            self._accepting = False
            self._closing = True
            self._lock.notify_all()
        self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def _check_room(self, entries: list[_Waiting]) -> None:
        if self._failure is not None:
            raise UnavailableError(f"model {self._name!r} has failed: {self._failure}")
        if not self._accepting:
            raise UnavailableError(f"model {self._name!r} is stopping; try another replica")
        num_items = self._num_waiting_items + sum(len(entry.items) for entry in entries)
        settings = self._settings
        too_many = self._num_waiting + len(entries) > settings.max_waiting_inputs
        # Whatever comes first may wait, however long it is.
        if self._num_waiting and (too_many or num_items > settings.max_waiting_tokens):
            raise OverloadedError(
                f"model {self._name!r}: {self._num_waiting} sequences with {self._num_waiting_items} items wait "
                f"(limits {settings.max_waiting_inputs} and {settings.max_waiting_tokens}); retry later"
            )

    def _count(self, entries: Sequence[_Waiting], sign: int) -> None:
        self._num_waiting += sign * len(entries)
        self._num_waiting_items += sign * sum(len(entry.items) for entry in entries)

    def _has_work(self) -> bool:
        return self._num_waiting > 0 or self._run_started is not None

    def _loop(self) -> None:
        try:
            while batch := self._next_batch():
                self._run(batch)
        except BaseException as error:
            logger.exception("batches of model %s have failed", self._name)
            self._failure = error
        reason = "has failed" if self._failure else "is stopping"
        with self._lock:
            left = [entry for entries in self._waiting.values() for entry in entries]
            self._waiting.clear()
            self._count(left, -1)
            self._run_started = None
            self._lock.notify_all()
        _fail(left, UnavailableError(f"model {self._name!r} {reason}; retry elsewhere"))

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a batch that is full, or whose first sequence has waited long enough; none when closing."""
        with self._lock:
            self._run_started = None
            self._lock.notify_all()  # whoever drains looks again
            while not self._closing:
                if batch := self._take(time.monotonic()):
                    self._run_started = time.monotonic()
                    return batch
                self._lock.wait(self._seconds_to_next())
            return []

    def _take(self, now: float) -> list[_Waiting]:
        """The batch to run now; of several the one that began to wait first, so that none is passed over for ever."""
        ripe = [entries for entries in self._waiting.values() if self._is_ripe(entries, now)]
        if not ripe:
            return []
        chosen = min(ripe, key=lambda entries: entries[0].arrived)
        batch, width = chosen[: self._most_rows(chosen[0].width)], chosen[0].width
        del chosen[: len(batch)]
        if not chosen:
            del self._waiting[width]
        self._count(batch, -1)
        return batch

    def _is_ripe(self, entries: list[_Waiting], now: float) -> bool:
        is_full = len(entries) >= self._most_rows(entries[0].width)
        return is_full or not self._accepting or now >= entries[0].arrived + self._delay

    def _seconds_to_next(self) -> float | None:
        first = min((entries[0].arrived for entries in self._waiting.values()), default=None)
        return None if first is None else max(0.0, first + self._delay - time.monotonic())

    def _most_rows(self, width: int) -> int:
        return max(1, min(self._settings.max_batch_rows, self._token_budget // width))

    def _run(self, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        late = [entry for entry in batch if entry.deadline is not None and started >= entry.deadline]
        _fail(late, DeadlineExceededError("the deadline passed before the sequence was read"))
        rows = [entry for entry in batch if entry not in late and entry.answer.set_running_or_notify_cancel()]
        if not rows:
            return
        try:
            answers = self._runner.run_rows([entry.items for entry in rows], rows[0].width)
        except Exception as error:
            self._blame(error, rows)
        else:
            for entry, answer in zip(rows, answers, strict=True):
                _give(entry, answer)
        self._record(rows, started)

    def _blame(self, error: Exception, rows: list[_Waiting]) -> None:
        """Tell those whose run failed; raises the error itself where no run can follow."""
        logger.exception("a batch of model %s failed", self._name)
        told = step_error(error, self._name)
        _fail(rows, told)
        if isinstance(told, UnavailableError):
            raise error

    def _record(self, rows: list[_Waiting], started: float) -> None:
        self.stats.num_batches += 1
        self.stats.num_rows += len(rows)
        self.stats.num_items += sum(len(entry.items) for entry in rows)
        self.stats.num_padded_items += len(rows) * rows[0].width
        self.stats.waited_seconds += sum(started - entry.arrived for entry in rows)
        self.stats.busy_seconds += time.monotonic() - started


def _give(entry: _Waiting, answer: Answer) -> None:
    if all(np.isfinite(values).all() for values in answer.values()):
        entry.answer.set_result(answer)
    else:
        entry.answer.set_exception(DataLossError("the model's output is NaN or infinite for this sequence"))


def _fail(entries: Sequence[_Waiting], error: StatewiseError) -> None:
    for entry in entries:
        # What runs cannot be cancelled any more; what waits may have been.
        if entry.answer.running() or entry.answer.set_running_or_notify_cancel():
            entry.answer.set_exception(error)
