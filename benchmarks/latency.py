"""Gaps between the tokens of running streams while a long prompt is read, in chunks or whole."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import vocabulary_size
from benchmarks.report import Report
from benchmarks.workloads import SEED
from statewise.bundles.reader import Bundle
from statewise.errors import StatewiseError
from statewise.rules.sampling import GREEDY
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.request import Delta, Stream

NUM_THREADS = 2


@dataclass(frozen=True)
class Scene:
    """Scene of a measurement: decoding streams, and long prompts that arrive one after the other."""

    num_streams: int = 15
    prompt_length: int = 32
    long_prompt_length: int = 400
    num_arrivals: int = 8
    tokens_between: int = 32
    """Tokens per stream between two arrivals."""


@dataclass(eq=False)
class Clock:
    """Channel that records the arrival time of each delta."""

    times: dict[Stream, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Times per stream, one per token."""
    error: StatewiseError | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        """Record the time of a step's tokens."""
        now = time.perf_counter()
        with self.changed:
            for stream, delta in events:
                self.error = self.error or delta.error
                self.times[stream] += [now] * len(delta.items)
            self.changed.notify_all()

    def wait(self, stream: Stream, num_tokens: int) -> None:
        """Wait until a stream has this many tokens; raises if any stream has failed."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or len(self.times[stream]) >= num_tokens)
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Gaps:
    """Seconds between the tokens of running streams."""

    quiet: NDArray[np.float64]
    """Gaps while no prompt was read."""
    arriving: NDArray[np.float64]
    """Gaps while a prompt was read."""
    first_token: NDArray[np.float64]
    """Time from the arrival of each long prompt to its first token."""


def measure(bundle: Bundle, variant: str, settings: EngineSettings, scene: Scene = Scene()) -> Gaps:
    """Run the scene once."""
    engine = Engine.load(bundle, variant, settings)
    engine.start()
    try:
        return _play(engine, vocabulary_size(bundle), scene)
    finally:
        engine.close()


def add(report: Report, bundle: Bundle, variant: str, scene: Scene = Scene()) -> None:
    """Measure both ways and add a table, in milliseconds."""
    rows, content = [], {}
    whole = max(512, scene.long_prompt_length)
    for name, chunk in (("in chunks of 64", 64), ("whole", whole)):
        settings = EngineSettings(
            max_rows=scene.num_streams + 1, prefill_chunk=chunk, token_budget=chunk, intra_op_threads=NUM_THREADS
        )
        gaps = measure(bundle, variant, settings, scene)
        figures = summary(gaps)
        content[name] = figures
        rows.append([name, *(f"{value:.1f}" for value in figures.values())])
    title = (
        f"Gaps between tokens, ms: {scene.num_streams} streams decode, prompts of {scene.long_prompt_length} tokens "
        f"arrive ({variant})"
    )
    report.add(title, ["the prompt is read", *content["whole"]], rows, inter_token_latency=content)


def summary(gaps: Gaps) -> dict[str, float]:
    """Return the figures in milliseconds, by name."""
    both = np.concatenate([gaps.quiet, gaps.arriving])
    figures = {
        "p50": np.percentile(both, 50),
        "p99": np.percentile(both, 99),
        "p50 undisturbed": np.percentile(gaps.quiet, 50),
        "p50 while it is read": np.percentile(gaps.arriving, 50),
        "longest": both.max(),
        "its first token after": np.median(gaps.first_token),
    }
    return {name: round(1000 * float(value), 2) for name, value in figures.items()}


def _play(engine: Engine, size: int, scene: Scene) -> Gaps:
    rng = np.random.default_rng(SEED)
    clock, arrivals = Clock(), []
    assert engine.limits.max_positions is not None
    num_tokens = engine.limits.max_positions - scene.prompt_length
    streams = [
        engine.submit(GenerationRequest(rng.integers(0, size, scene.prompt_length), GREEDY, num_tokens), clock)
        for _ in range(scene.num_streams)
    ]
    last = streams[-1]
    for _ in range(scene.num_arrivals):
        clock.wait(last, len(clock.times[last]) + scene.tokens_between)
        arrived = time.perf_counter()
        prompt = rng.integers(0, size, scene.long_prompt_length)
        stream = engine.submit(GenerationRequest(prompt, GREEDY, 1), clock)
        clock.wait(stream, 1)
        arrivals.append((arrived, clock.times[stream][0]))
    clock.wait(last, len(clock.times[last]) + 2)
    started = max(clock.times[stream][0] for stream in streams)
    return _gaps([np.array(clock.times[stream]) for stream in streams], arrivals, started)


def _gaps(streams: list[NDArray[np.float64]], arrivals: list[tuple[float, float]], started: float) -> Gaps:
    """Split the gaps by whether a prompt was being read, from the time when all streams run."""
    quiet, arriving = [], []
    for times in streams:
        for before, after in pairwise(times):
            if before < started:
                continue
            is_disturbed = any(before < done and after > arrived for arrived, done in arrivals)
            (arriving if is_disturbed else quiet).append(after - before)
    return Gaps(np.array(quiet), np.array(arriving), np.array([done - arrived for arrived, done in arrivals]))
