"""One model being served: a thread that plans, runs and commits one step after another."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

from server.engine.batch import decode, prefill
from server.engine.limits import Limits
from server.engine.request import Channel, Delta, GenerationRequest, Stream
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.settings import EngineSettings
from server.runtime.faults import step_error
from server.runtime.runner import Runner, StepResult
from statewise.bundle import Bundle
from statewise.errors import (
    CancelledError,
    DeadlineExceededError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)
from statewise.manifest import Manifest
from statewise.text import load_tokenizer

logger = logging.getLogger(__name__)

STEP_TIMEOUT_SECONDS = 60.0
"""A run that takes longer makes the engine unhealthy."""

CLOSE_TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class EngineStats:
    """Totals since the start, for metrics and benchmarks."""

    num_steps: int = 0
    num_prompt_items: int = 0
    num_output_items: int = 0
    busy_seconds: float = 0.0


class Engine:
    """Continuous batching over one bundle variant.

    `submit` and `cancel` may be called from any thread; news is delivered on the engine's.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant_name: str,
        runner: Runner,
        tokenizer: Tokenizer | None,
        settings: EngineSettings,
    ) -> None:
        self.manifest = manifest
        self.variant_name = variant_name
        self.tokenizer = tokenizer
        self.limits = Limits.of(settings, manifest.model)
        self.stats = EngineStats()
        self._runner = runner
        self._scheduler = Scheduler(runner, settings)
        self._lock = threading.Condition()
        self._attention = False
        """A running or waiting stream was cancelled."""
        self._next_deadline = float("inf")
        self._accepting = True
        self._closing = False
        self._step_seconds = 0.0
        self._step_started: float | None = None
        self._failure: BaseException | None = None
        self._news: dict[Channel, list[tuple[Stream, Delta]]] = defaultdict(list)
        self._thread = threading.Thread(target=self._loop, name=f"engine-{manifest.name}", daemon=True)

    @classmethod
    def load(cls, bundle: Bundle, variant_name: str, settings: EngineSettings) -> Engine:
        """Load a variant into memory and warm it up.

        Raises BundleError where ONNX Runtime refuses it.
        """
        runner = Runner.load(
            bundle, variant_name, max_rows=settings.max_rows, intra_op_threads=settings.intra_op_threads
        )
        runner.warm_up()
        file = bundle.manifest.tokenizer
        tokenizer = load_tokenizer(bundle.path(file)) if file else None
        return cls(bundle.manifest, variant_name, runner, tokenizer, settings)

    @property
    def state_bytes_per_row(self) -> int:
        """Bytes of state that one stream holds."""
        return self._runner.pool.bytes_per_row

    @property
    def num_running(self) -> int:
        """Rows in use."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._scheduler.waiting)

    @property
    def is_healthy(self) -> bool:
        """Whether the loop lives and no run has been going on for too long."""
        started = self._step_started
        hangs = started is not None and time.monotonic() - started > STEP_TIMEOUT_SECONDS
        return self._failure is None and not hangs

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, request: GenerationRequest, channel: Channel) -> Stream:
        """Queue a request.

        Raises InvalidRequestError where it can never be served, OverloadedError where there is no room to wait, and
        UnavailableError where the engine is stopping.
        """
        self.limits.check(request, self.manifest.model, has_tokenizer=self.tokenizer is not None)
        stream = Stream(request, channel)
        sequence = Sequence(stream, self.tokenizer)
        with self._lock:
            self._check_room(len(request.prompt))
            self._scheduler.waiting.append(sequence)
            if request.deadline is not None:
                self._next_deadline = min(self._next_deadline, request.deadline)
            self._lock.notify()
        return stream

    def cancel(self, stream: Stream) -> None:
        """Free the stream's row before the next step; does nothing for a stream that has ended."""
        with self._lock:
            stream.cancelled = True
            self._attention = True
            self._lock.notify()

    def drain(self, grace: float) -> None:
        """Accept nothing more and wait until what runs is done, at most `grace` seconds."""
        deadline = time.monotonic() + grace
        with self._lock:
            self._accepting = False
            while self._has_work() and self._thread.is_alive() and time.monotonic() < deadline:
                self._lock.wait(timeout=min(0.05, grace))

    def close(self) -> None:
        """End the thread; what still runs fails with UnavailableError. A run that hangs is left behind."""
        with self._lock:
            self._accepting = False
            self._closing = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def _check_room(self, num_items: int) -> None:
        if not self._accepting:
            raise UnavailableError(f"model {self.manifest.name!r} is stopping; try another replica")
        if self._failure is not None:
            raise UnavailableError(f"model {self.manifest.name!r} has failed: {self._failure}")
        waiting, limits = self._scheduler.waiting, self.limits
        num_free = limits.max_rows - len(self._scheduler.running)
        if len(waiting) >= limits.max_waiting + num_free:
            raise OverloadedError(
                f"model {self.manifest.name!r}: {limits.max_rows} streams run and {len(waiting)} requests wait "
                f"(limit {limits.max_waiting}); retry later"
            )
        queued = sum(len(sequence.request.prompt) for sequence in waiting)
        if waiting and queued + num_items > limits.max_waiting_tokens:
            raise OverloadedError(
                f"model {self.manifest.name!r}: {queued} prompt items wait "
                f"(limit {limits.max_waiting_tokens}); retry later"
            )

    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _loop(self) -> None:
        try:
            while self._await_work():
                self._drop_gone()
                self._run_step()
                self._deliver()
        except BaseException as error:
            logger.exception("engine of model %s has failed", self.manifest.name)
            self._failure = error
        reason = "has failed" if self._failure else "is stopping"
        self._abandon(UnavailableError(f"model {self.manifest.name!r} {reason}; retry elsewhere"))
        self._deliver()

    def _await_work(self) -> bool:
        """Admit what waits; False when the engine closes."""
        with self._lock:
            self._lock.notify_all()  # whoever drains looks again
            while not self._has_work() and not self._closing:
                self._lock.wait()
            return not self._closing

    def _drop_gone(self) -> None:
        """Free what was cancelled or is past its deadline, then give free rows to who waits."""
        with self._lock:
            now = time.monotonic()
            if self._attention or now >= self._next_deadline:
                self._attention = False
                for sequence in self._all_sequences():
                    deadline = sequence.request.deadline
                    if sequence.stream.cancelled:
                        self._fail([sequence], CancelledError("the request was cancelled"))
                    elif deadline is not None and now >= deadline:
                        self._fail([sequence], DeadlineExceededError("the deadline passed before the last item"))
                deadlines = (s.request.deadline for s in self._all_sequences() if s.request.deadline is not None)
                self._next_deadline = min(deadlines, default=float("inf"))
            self._scheduler.admit()

    def _run_step(self) -> None:
        plan = self._scheduler.plan(self._step_seconds)
        if plan is None:
            return
        started = self._step_started = time.monotonic()
        running = self._scheduler.running
        decoding = running[: plan.num_decoding]
        prefilling = running[plan.num_decoding :][: len(plan.chunk_lengths)]
        try:
            decoded = decode(self._runner, decoding, plan.num_decode_steps, len(running)) if decoding else None
            self._step_seconds = (time.monotonic() - started) / plan.num_decode_steps if decoding else 0.0
            prefilled = prefill(self._runner, prefilling, plan.chunk_lengths, len(running)) if prefilling else None
            self._commit(decoding, decoded)
            self._commit_prompts(prefilling, plan.chunk_lengths, prefilled)
        except Exception as error:
            logger.exception("a step of model %s failed", self.manifest.name)
            told = step_error(error, self.manifest.name)
            if isinstance(told, UnavailableError):
                raise
            self._fail([*decoding, *prefilling], told)
        finally:
            self._step_started = None
            self.stats.num_steps += 1
            self.stats.busy_seconds += time.monotonic() - started

    def _commit(self, sequences: list[Sequence], result: StepResult | None) -> None:
        for row, sequence in enumerate(sequences):
            self._append(sequence, result, row)

    def _commit_prompts(
        self, sequences: list[Sequence], chunk_lengths: tuple[int, ...], result: StepResult | None
    ) -> None:
        for row, (sequence, length) in enumerate(zip(sequences, chunk_lengths, strict=True)):
            sequence.num_prefilled += length
            self.stats.num_prompt_items += length
            if not sequence.num_prompt_left and not self._append(sequence, result, row):
                self._scheduler.start_decoding(sequence)

    def _append(self, sequence: Sequence, result: StepResult | None, row: int) -> bool:
        """Give a sequence what the run made for it; frees its row and returns True where that was its last."""
        assert result is not None
        delta = sequence.append(result, row)
        self.stats.num_output_items += len(delta.items)
        self._tell(sequence, delta)
        if delta.is_last:
            self._scheduler.release(sequence)
        return delta.is_last

    def _fail(self, sequences: Iterable[Sequence], error: StatewiseError) -> None:
        for sequence in sequences:
            if sequence.row >= 0:
                self._scheduler.release(sequence)
            elif sequence in self._scheduler.waiting:
                self._scheduler.waiting.remove(sequence)
            else:
                continue
            self._tell(sequence, Delta(error=error))

    def _abandon(self, error: StatewiseError) -> None:
        """Fail everything without moving a row: no step follows, and a device that has failed could not."""
        with self._lock:
            sequences = self._all_sequences()
            self._scheduler.running.clear()
            self._scheduler.waiting.clear()
            self._scheduler.num_decoding = 0
        for sequence in sequences:
            self._tell(sequence, Delta(error=error))

    def _all_sequences(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]

    def _tell(self, sequence: Sequence, delta: Delta) -> None:
        if delta.items or delta.text or delta.is_last:
            self._news[sequence.stream.channel].append((sequence.stream, delta))

    def _deliver(self) -> None:
        news, self._news = self._news, defaultdict(list)
        for channel, entries in news.items():
            channel.deliver(entries)
