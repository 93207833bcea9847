"""Continuous batching of one model: a worker that plans, runs and commits one step after another."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer

from statewise.bundles.manifest import Manifest
from statewise.bundles.reader import Bundle
from statewise.errors import (
    CancelledError,
    DeadlineExceededError,
    OverloadedError,
    StatewiseError,
)
from statewise.rules.text import load_tokenizer
from statewise_server.engine.generation.batch import Outcome, StepOutcomes, run_step
from statewise_server.engine.generation.beams import Beam, sequence_of
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.scheduler import Plan, Scheduler
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.generation.stats import EngineStats
from statewise_server.engine.limits import Limits
from statewise_server.engine.request import Channel, Delta, GenerationRequest, Stream
from statewise_server.engine.settings import EngineSettings
from statewise_server.engine.worker import Worker
from statewise_server.runtime.steps.runner import Runner

logger = logging.getLogger(__name__)


class Engine(Worker):
    """Generates with one bundle variant.

    `submit` and `cancel` may be called from any thread; channels get their events on the engine's.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant_name: str,
        runner: Runner,
        tokenizer: Tokenizer | None,
        settings: EngineSettings,
        memory: StateMemory,
    ) -> None:
        super().__init__(manifest.name)
        self.manifest = manifest
        self.variant_name = variant_name
        self.tokenizer = tokenizer
        self.limits = Limits.of(settings, manifest.model)
        self.memory = memory
        self.prefixes = PrefixCache.of(settings, memory, manifest.model)
        self.stats = EngineStats()
        self._runner = runner
        self._scheduler = Scheduler(runner, settings, memory, self.prefixes)
        self._has_cancelled = False
        """Whether a running or waiting stream was cancelled since the last step."""
        self._next_deadline = float("inf")
        """No request has an earlier deadline."""
        self._decode_seconds = 0.0
        self._events: dict[Channel, list[tuple[Stream, Delta]]] = defaultdict(list)

    @classmethod
    def load(cls, bundle: Bundle, variant_name: str, settings: EngineSettings) -> Engine:
        """Load a variant into memory and warm it up.

        Raises BundleError where ONNX Runtime refuses it, or its state needs more memory than it may use.
        """
        memory = StateMemory.of(settings, bundle.spec(variant_name), bundle.variant(variant_name).device)
        runner = Runner.load(
            bundle,
            variant_name,
            max_rows=memory.max_rows,
            capacity=memory.capacity_for(1),
            intra_op_threads=settings.intra_op_threads,
            with_mixed=settings.mixed_steps,
            captures=settings.cuda_graphs,
        )
        runner.warm_up()
        file = bundle.manifest.tokenizer
        tokenizer = load_tokenizer(bundle.path(file)) if file else None
        return cls(bundle.manifest, variant_name, runner, tokenizer, settings, memory)

    @property
    def state_bytes(self) -> int:
        """Bytes of state that the engine holds now."""
        return self._runner.pool.nbytes

    @property
    def state_capacity(self) -> int:
        """Positions for which each row has room now; 0 where the state does not grow."""
        return self._runner.pool.capacity

    @property
    def num_running(self) -> int:
        """Rows in use."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._scheduler.waiting)

    def submit(self, request: GenerationRequest, channel: Channel) -> Stream:
        """Queue a request.

        Raises InvalidRequestError where it can never be served, OverloadedError where there is no room to wait, and
        UnavailableError where the engine is stopping.
        """
        self.limits.check(request, self.manifest.model, has_tokenizer=self.tokenizer is not None)
        self._runner.sampler.check(request.sampling)
        stream = Stream(request, channel)
        sequence = sequence_of(stream, self.tokenizer)
        self.memory.check_beams(sequence.num_rows, sequence.num_positions)
        with self._lock:
            self._check_accepting()
            self._check_room(sequence)
            self._scheduler.waiting.append(sequence)
            if request.deadline is not None:
                self._next_deadline = min(self._next_deadline, request.deadline)
            self._lock.notify_all()
        return stream

    def cancel(self, stream: Stream) -> None:
        """Free the stream's row before the next step; does nothing for a stream that has ended."""
        with self._lock:
            stream.cancelled = True
            self._has_cancelled = True
            self._lock.notify_all()

    def _check_room(self, sequence: Sequence) -> None:
        waiting, limits = self._scheduler.waiting, self.limits
        if self._scheduler.num_left_waiting(sequence) > limits.max_waiting:
            raise OverloadedError(
                f"model {self.manifest.name!r}: {self.num_running} streams run and {len(waiting)} requests wait "
                f"(limit {limits.max_waiting}); retry later"
            )
        queued = sum(other.request.num_items for other in waiting)
        if waiting and queued + sequence.request.num_items > limits.max_waiting_tokens:
            raise OverloadedError(
                f"model {self.manifest.name!r}: {queued} prompt items wait "
                f"(limit {limits.max_waiting_tokens}); retry later"
            )

    def _seconds_to_run(self) -> float | None:
        return 0.0 if self._scheduler.running or self._scheduler.waiting else None

    def _run_once(self) -> None:
        """Take one step: plan it, run its batches, commit their outcomes."""
        plan = self._plan()
        if plan is not None:
            with self._step_of(plan):
                outcomes = run_step(self._runner, plan, self._scheduler.running)
                self._commit(outcomes)
        self._deliver()

    def _fail_all(self, error: StatewiseError) -> None:
        """Fail every request; rows are not moved, since a failed device could not."""
        with self._lock:
            self._fail_running(error)
            self._fail(list(self._scheduler.waiting), error)
        self._deliver()

    def _plan(self) -> Plan | None:
        """End cancelled and late requests, admit waiting ones into free rows, and plan the step."""
        with self._lock:
            self._end_cancelled_and_late()
            admitted = self._scheduler.admit()
        # Not under the lock: this moves memory, and callers of `submit` must not wait for it.
        self._prepare(admitted)
        return self._scheduler.plan(self._decode_seconds)

    def _end_cancelled_and_late(self) -> None:
        now = time.monotonic()
        if not self._has_cancelled and now < self._next_deadline:
            return
        self._has_cancelled = False
        for sequence in self._all_sequences():
            deadline = sequence.request.deadline
            if sequence.stream.cancelled:
                self._fail([sequence], CancelledError("the request was cancelled"))
            elif deadline is not None and now >= deadline:
                self._fail([sequence], DeadlineExceededError("the deadline passed before the last item"))
        deadlines = (s.request.deadline for s in self._all_sequences() if s.request.deadline is not None)
        self._next_deadline = min(deadlines, default=float("inf"))

    def _prepare(self, admitted: list[Sequence]) -> None:
        try:
            self._scheduler.prepare(admitted)
            self.stats.num_cached_items += sum(sequence.num_prefilled for sequence in admitted)
        except Exception as error:
            logger.exception("model %s: no room for the state of %d requests", self.manifest.name, len(admitted))
            # A resize that broke off leaves no row as it was.
            self._fail_running(self._error_for(error))

    @contextmanager
    def _step_of(self, plan: Plan) -> Iterator[None]:
        """Fail the plan's sequences where the step raises, and count the step."""
        started = time.monotonic()
        planned = self._scheduler.running[: plan.num_decoding + len(plan.chunk_lengths)]
        try:
            yield
        except Exception as error:
            logger.exception("a step of model %s failed", self.manifest.name)
            self._fail(planned, self._error_for(error))
        finally:
            self.stats.num_steps += 1
            self.stats.num_mixed_steps += plan.is_mixed
            self.stats.busy_seconds += time.monotonic() - started

    def _commit(self, step: StepOutcomes) -> None:
        """Move every sequence of the step on."""
        self._decode_seconds = step.decode_seconds
        self.stats.num_source_items += step.num_source_items
        for outcome in step.outcomes:
            self._commit_outcome(outcome)

    def _commit_outcome(self, outcome: Outcome) -> None:
        """Append the outcome to its sequence, and free the row after the last item."""
        sequence = outcome.sequence
        if sequence.row < 0:
            return  # another beam of the same search has failed in this step
        if outcome.num_prompt_items:
            self._commit_chunk(outcome)
            if sequence.num_prompt_left:
                return
        delta = sequence.append(outcome.result, outcome.row)
        if outcome.num_prompt_items and sequence.request.keeps_state:
            delta.state = self._runner.pool.save_row(sequence.row)
        self.stats.num_output_items += len(delta.items)
        self._emit(sequence.stream, delta)
        if delta.is_last:
            self._scheduler.release(sequence)
            return
        if outcome.num_prompt_items:
            self._scheduler.start_decoding(sequence)
        if isinstance(sequence, Beam):
            self._scheduler.follow(sequence)

    def _commit_chunk(self, outcome: Outcome) -> None:
        outcome.sequence.num_prefilled += outcome.num_prompt_items
        self.stats.num_prompt_items += outcome.num_prompt_items
        if outcome.result.is_finite(outcome.row):
            self.prefixes.save(outcome.sequence, self._runner.pool)

    def _fail_running(self, error: StatewiseError) -> None:
        for stream in {sequence.stream: None for sequence in self._scheduler.free_all()}:
            self._emit(stream, Delta(error=error))

    def _fail(self, sequences: Iterable[Sequence], error: StatewiseError) -> None:
        for sequence in sequences:
            if sequence.row >= 0:
                self._scheduler.release(sequence)
            elif sequence in self._scheduler.waiting:
                self._scheduler.waiting.remove(sequence)
            else:
                continue
            self._emit(sequence.stream, Delta(error=error))

    def _all_sequences(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]

    def _emit(self, stream: Stream, delta: Delta) -> None:
        if delta.items or delta.text or delta.is_last:
            self._events[stream.channel].append((stream, delta))

    def _deliver(self) -> None:
        events, self._events = self._events, defaultdict(list)
        for channel, entries in events.items():
            channel.deliver(entries)
