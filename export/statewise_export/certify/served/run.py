"""Requests to the real engine, and what each of them was answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import ParityError
from statewise.model.spec import InputSpec, TokenInput
from statewise_export.certify.trial import Trial
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.queue_channel import BulkRun
from statewise_server.engine.request import Delta

Array = NDArray[Any]

MAX_ROWS = 4
"""Fewer than the requests, so that rows leave, others move into their places, and waiting requests join."""
PREFILL_CHUNK = 16


@dataclass(frozen=True)
class Served:
    """A request and the whole answer to it."""

    request: GenerationRequest
    answer: Delta = field(default_factory=Delta)
    num_cached: int = 0
    expected_cached: int | None = 0
    """Prompt items whose state earlier requests have left behind; None where that is not certain."""

    @property
    def items(self) -> Array:
        """The items that were generated, `[item]` or `[item, features]`."""
        return np.array(self.answer.items)

    @property
    def read(self) -> Array:
        """The items that the model has read to generate these: the prompt, and all of them but the last."""
        return np.concatenate([self.request.prompt, self.items[:-1]])


def prefill_chunk(trial: Trial) -> int:
    """Items of a prompt in one run: several chunks fit into a model of few positions."""
    return min(PREFILL_CHUNK, max(1, trial.position_limit // 8))


@contextmanager
def running_engine(trial: Trial) -> Iterator[Engine]:
    """An engine that serves the variant, as `statewise serve` would with few rows."""
    settings = EngineSettings(
        max_rows=MAX_ROWS,
        prefill_chunk=prefill_chunk(trial),
        # Bounds, far beyond what a few short requests take.
        state_memory=2**40,
        prefix_memory=2**30,
    )
    engine = Engine.load(trial.placed, trial.variant_name, settings)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def serve(engine: Engine, requests: Sequence[Served]) -> list[Served]:
    """Submit requests together and wait for all answers.

    Raises the error that any of them is answered with, and ParityError for an answer that no model could give.
    """
    run = BulkRun(engine, [served.request for served in requests], len(requests), 0)
    every = []
    for served, (stream, answer) in zip(requests, run, strict=True):
        if answer.error is not None:
            raise answer.error
        every.append(Served(served.request, answer, stream.num_cached, served.expected_cached))
    for served in every:
        _check_items(served, engine.manifest.model.input)
    return every


def _check_items(served: Served, reads: InputSpec) -> None:
    """Raise ParityError for an answer without items, and for tokens that are not of the vocabulary."""
    items = served.items
    if not len(items):
        raise ParityError(f"an answer to a prompt of {len(served.request.prompt)} items holds none")
    if isinstance(reads, TokenInput) and not ((items >= 0) & (items < reads.vocabulary_size)).all():
        raise ParityError(f"tokens {items.tolist()} are not all in the vocabulary of {reads.vocabulary_size}")
