"""Dynamic batching of whole sequences: those that arrive within a short time share a run, whoever sent them.

A batch holds sequences of one bucket of lengths only, so a sequence's padded width does not depend on its company.
"""

from __future__ import annotations

import logging
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
)
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.worker import Worker
from statewise_server.runtime.one_shot import OneShotRunner

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Answer = dict[str, Array]
"""A graph's outputs for one sequence, by name."""


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
    """A sequence that waits for its run."""

    items: Array
    width: int
    arrived: float
    deadline: float | None
    outputs: Future[Answer] = field(default_factory=Future)


class Batcher(Worker):
    """Runs one graph for many callers; serves from its construction on."""

    def __init__(self, name: str, runner: OneShotRunner, settings: EngineSettings, token_budget: int) -> None:
        super().__init__(name)
        self.stats = BatchStats()
        self._runner = runner
        self._settings = settings
        self._token_budget = token_budget
        self._delay = settings.batch_delay_ms / 1000
        self._waiting: dict[int, list[_Waiting]] = defaultdict(list)
        """By width; none of the lists is empty."""
        self._num_waiting = 0
        self._num_waiting_items = 0
        self._batch: list[_Waiting] = []
        """The sequences of the current run."""
        self.start()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a batch."""
        return self._num_waiting

    def num_numbers(self, length: int) -> int:
        """Numbers in the outputs for a sequence of this length."""
        return self._runner.num_numbers(length)

    def submit(self, items: Array, deadline: float | None = None) -> Future[Answer]:
        """Queue one sequence; as `submit_all`."""
        return self.submit_all([items], deadline)[0]

    def submit_all(self, rows: Sequence[Array], deadline: float | None = None) -> list[Future[Answer]]:
        """Queue sequences, all or none; each future gets the graph's outputs for its row, by name.

        `rows`: int64 `[time]` or float32 `[time, features]`, checked, at least one item each. `deadline`:
        time.monotonic() seconds after which they are no longer run. A sequence whose future is cancelled before its run
        is left out.
        Raises OverloadedError where there is no room to wait, UnavailableError where the batcher is stopping.
        """
        now = time.monotonic()
        entries = [_Waiting(items, self._runner.bucket_of(len(items)), now, deadline) for items in rows]
        with self._lock:
            self._check_accepting()
            self._check_room(entries)
            for entry in entries:
                self._waiting[entry.width].append(entry)
            self._count(entries, 1)
            self._lock.notify_all()
        return [entry.outputs for entry in entries]

    def _check_room(self, entries: list[_Waiting]) -> None:
        num_items = self._num_waiting_items + sum(len(entry.items) for entry in entries)
        settings = self._settings
        too_many = self._num_waiting + len(entries) > settings.max_waiting_inputs
        # An empty queue takes any request, however long.
        if self._num_waiting and (too_many or num_items > settings.max_waiting_tokens):
            raise OverloadedError(
                f"model {self._model!r}: {self._num_waiting} sequences with {self._num_waiting_items} items wait "
                f"(limits {settings.max_waiting_inputs} and {settings.max_waiting_tokens}); retry later"
            )

    def _count(self, entries: Sequence[_Waiting], sign: int) -> None:
        self._num_waiting += sign * len(entries)
        self._num_waiting_items += sign * sum(len(entry.items) for entry in entries)

    def _seconds_to_run(self) -> float | None:
        now = time.monotonic()
        return min((self._seconds_to_batch(entries, now) for entries in self._waiting.values()), default=None)

    def _seconds_to_batch(self, entries: list[_Waiting], now: float) -> float:
        """Seconds until sequences of one width are to run: 0 once they fill a batch or have waited long enough."""
        is_full = len(entries) >= self._max_rows(entries[0].width)
        return 0.0 if is_full or not self._accepting else max(0.0, entries[0].arrived + self._delay - now)

    def _max_rows(self, width: int) -> int:
        return max(1, min(self._settings.max_batch_rows, self._token_budget // width))

    def _run_once(self) -> None:
        """Take the batch that is due, run it, and hand out its outputs."""
        started = time.monotonic()
        self._batch = self._start(self._take(started), started)
        if not self._batch:
            return
        try:
            outputs = self._runner.run_rows([entry.items for entry in self._batch], self._batch[0].width)
        except Exception as error:
            logger.exception("a batch of model %s failed", self._model)
            _fail(self._batch, self._error_for(error))
        else:
            for entry, own in zip(self._batch, outputs, strict=True):
                _give(entry, own)
        self._record(self._batch, started)
        self._batch = []

    def _fail_all(self, error: StatewiseError) -> None:
        with self._lock:
            waiting = [entry for entries in self._waiting.values() for entry in entries]
            self._waiting.clear()
            self._count(waiting, -1)
        _fail([entry for entry in (*self._batch, *waiting) if not entry.outputs.done()], error)

    def _take(self, now: float) -> list[_Waiting]:
        """Return the batch that is due; of several, the one whose first sequence has waited longest."""
        with self._lock:
            due = [entries for entries in self._waiting.values() if not self._seconds_to_batch(entries, now)]
            chosen = min(due, key=lambda entries: entries[0].arrived)
            width = chosen[0].width
            batch = chosen[: self._max_rows(width)]
            del chosen[: len(batch)]
            if not chosen:
                del self._waiting[width]
            self._count(batch, -1)
            return batch

    @staticmethod
    def _start(batch: list[_Waiting], now: float) -> list[_Waiting]:
        """Return the sequences to run: neither late, which fail here, nor cancelled."""
        late = [entry for entry in batch if entry.deadline is not None and now >= entry.deadline]
        _fail(late, DeadlineExceededError("the deadline passed before the sequence was read"))
        return [entry for entry in batch if entry not in late and entry.outputs.set_running_or_notify_cancel()]

    def _record(self, rows: list[_Waiting], started: float) -> None:
        self.stats.num_batches += 1
        self.stats.num_rows += len(rows)
        self.stats.num_items += sum(len(entry.items) for entry in rows)
        self.stats.num_padded_items += len(rows) * rows[0].width
        self.stats.waited_seconds += sum(started - entry.arrived for entry in rows)
        self.stats.busy_seconds += time.monotonic() - started


def _give(entry: _Waiting, outputs: Answer) -> None:
    if all(np.isfinite(values).all() for values in outputs.values()):
        entry.outputs.set_result(outputs)
    else:
        entry.outputs.set_exception(DataLossError("the model's output is NaN or infinite for this sequence"))


def _fail(entries: Sequence[_Waiting], error: StatewiseError) -> None:
    for entry in entries:
        # A running future cannot be cancelled any more; a waiting one may have been.
        if entry.outputs.running() or entry.outputs.set_running_or_notify_cancel():
            entry.outputs.set_exception(error)
