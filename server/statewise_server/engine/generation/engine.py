"""One model being served: a thread that plans, runs and commits one step after another."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable

from tokenizers import Tokenizer

from statewise.bundles.manifest import Manifest
from statewise.bundles.reader import Bundle
from statewise.errors import (
    CancelledError,
    DeadlineExceededError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)
from statewise.rules.text import load_tokenizer
from statewise_server.engine.beams.beams import Beam, sequence_of
from statewise_server.engine.generation.batch import Outcome, decode, encode, prefill
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.scheduler import Scheduler
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.generation.stats import EngineStats
from statewise_server.engine.limits import Limits
from statewise_server.engine.request import Channel, Delta, GenerationRequest, Stream
from statewise_server.engine.settings import EngineSettings
from statewise_server.runtime.ort.faults import step_error
from statewise_server.runtime.steps.runner import Runner

logger = logging.getLogger(__name__)

STEP_TIMEOUT_SECONDS = 60.0
"""A run that takes longer makes the engine unhealthy."""

CLOSE_TIMEOUT_SECONDS = 10.0


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
        memory: StateMemory,
    ) -> None:
        self.manifest = manifest
        self.variant_name = variant_name
        self.tokenizer = tokenizer
        self.limits = Limits.of(settings, manifest.model)
        self.memory = memory
        self.prefixes = PrefixCache.of(settings, memory, manifest.model)
        self.stats = EngineStats()
        self._runner = runner
        self._scheduler = Scheduler(runner, settings, memory, self.prefixes)
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
        self._runner.sampler.check(request.sampling)
        stream = Stream(request, channel)
        sequence = sequence_of(stream, self.tokenizer)
        self.memory.check_beams(sequence.num_rows, sequence.num_positions)
        with self._lock:
            self._check_room(sequence)
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

    def _check_room(self, sequence: Sequence) -> None:
        if not self._accepting:
            raise UnavailableError(f"model {self.manifest.name!r} is stopping; try another replica")
        if self._failure is not None:
            raise UnavailableError(f"model {self.manifest.name!r} has failed: {self._failure}")
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
        self._end()
        self._deliver()

    def _end(self) -> None:
        """Tell everyone that no step follows; rows are not moved, as a device that has failed could not."""
        reason = "has failed" if self._failure else "is stopping"
        error = UnavailableError(f"model {self.manifest.name!r} {reason}; retry elsewhere")
        with self._lock:
            self._fail_running(error)
            self._fail(list(self._scheduler.waiting), error)

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
            admitted = self._scheduler.admit()
        self._place(admitted)

    def _place(self, admitted: list[Sequence]) -> None:
        """Not under the lock: this moves memory, and who submits must not wait for it."""
        try:
            self._scheduler.place(admitted)
            self.stats.num_cached_items += sum(sequence.num_prefilled for sequence in admitted)
        except Exception as error:
            logger.exception("model %s: no place for the state of %d requests", self.manifest.name, len(admitted))
            # A resize that broke off leaves no row as it was.
            self._fail_running(self._blame(error))

    def _run_step(self) -> None:
        plan = self._scheduler.plan(self._step_seconds)
        if plan is None:
            return
        started = self._step_started = time.monotonic()
        running = self._scheduler.running
        involved = running[: plan.num_decoding + len(plan.chunk_lengths)]
        try:
            self.stats.num_source_items += encode(self._runner, plan, running)
            decoding = time.monotonic()
            decoded = decode(self._runner, plan, running)
            self._step_seconds = (time.monotonic() - decoding) / plan.num_decode_steps if decoded else 0.0
            for outcome in (*decoded, *prefill(self._runner, plan, running)):
                self._commit(outcome)
        except Exception as error:
            logger.exception("a step of model %s failed", self.manifest.name)
            self._fail(involved, self._blame(error))
        finally:
            self._step_started = None
            self.stats.num_steps += 1
            self.stats.num_mixed_steps += plan.is_mixed
            self.stats.busy_seconds += time.monotonic() - started

    def _commit(self, outcome: Outcome) -> None:
        """Move a sequence on; frees its row where that was its last item."""
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
        self._tell(sequence.stream, delta)
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

    def _blame(self, error: Exception) -> StatewiseError:
        """What those are told whom a failed step was for; raises the error itself where no step can follow."""
        told = step_error(error, self.manifest.name)
        if isinstance(told, UnavailableError):
            raise error
        return told

    def _fail_running(self, error: StatewiseError) -> None:
        for stream in {sequence.stream: None for sequence in self._scheduler.free_all()}:
            self._tell(stream, Delta(error=error))

    def _fail(self, sequences: Iterable[Sequence], error: StatewiseError) -> None:
        for sequence in sequences:
            if sequence.row >= 0:
                self._scheduler.release(sequence)
            elif sequence in self._scheduler.waiting:
                self._scheduler.waiting.remove(sequence)
            else:
                continue
            self._tell(sequence.stream, Delta(error=error))

    def _all_sequences(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]

    def _tell(self, stream: Stream, delta: Delta) -> None:
        if delta.items or delta.text or delta.is_last:
            self._news[stream.channel].append((stream, delta))

    def _deliver(self) -> None:
        news, self._news = self._news, defaultdict(list)
        for channel, entries in news.items():
            channel.deliver(entries)
