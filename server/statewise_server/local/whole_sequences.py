"""Whole sequences of any number, read and run for a caller in this process, a window of them at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import OneShotGraph
from statewise.client.items import items_of
from statewise.client.values import Inspection, Prediction, Prompt, Score
from statewise.errors import DataLossError, DeadlineExceededError, OverloadedError
from statewise_server.local.predicting import (
    check_embeds,
    check_inspection_size,
    inspection_of,
    prediction_of,
    score_of,
)
from statewise_server.local.reading import Reader, ReadSequence, deadline_after

if TYPE_CHECKING:
    from statewise_server.engine.whole_sequences.batcher import Answer, Batcher
    from statewise_server.engine.whole_sequences.predictor import Predictor

Result = TypeVar("Result")
ResultOf = Callable[["Answer", ReadSequence, "Predictor"], Result]
Inputs = Iterable[Prompt]

BATCHES_AHEAD = 4
"""Batches of sequences that are read before the first one's results are taken."""

_RETRY_SECONDS = 0.005


def predictions(predictor: Predictor, inputs: Inputs, timeout: float | None) -> Iterator[Prediction]:
    """Predict each sequence, in order. Raises InvalidRequestError, naming the input by its position."""
    return _results(predictor, "predict", inputs, timeout, prediction_of)


def embeddings(predictor: Predictor, inputs: Inputs, timeout: float | None) -> Iterator[NDArray[np.float32]]:
    """The embedding of each sequence, as `predictions`."""
    check_embeds(predictor)
    for prediction in predictions(predictor, inputs, timeout):
        assert prediction.embedding is not None
        yield prediction.embedding


def scores(predictor: Predictor, inputs: Inputs, timeout: float | None) -> Iterator[Score]:
    """Score each sequence, as `predictions` does."""
    return _results(predictor, "score", inputs, timeout, score_of)


def inspections(predictor: Predictor, inputs: Inputs, timeout: float | None) -> Iterator[Inspection]:
    """Inspect each sequence, as `predictions` does."""
    return _results(predictor, "inspect", inputs, timeout, inspection_of)


def _results(
    predictor: Predictor, graph: OneShotGraph, inputs: Inputs, timeout: float | None, result_of: ResultOf[Result]
) -> Iterator[Result]:
    batcher, reader = predictor.batcher(graph), Reader.of_inputs(predictor)
    window = 1 if graph == "inspect" else BATCHES_AHEAD * predictor.settings.max_batch_rows
    waiting: deque[tuple[int, ReadSequence, Future[Answer]]] = deque()

    def take() -> Result:
        place, sequence, answer = waiting.popleft()
        try:
            return result_of(answer.result(), sequence, predictor)
        except DataLossError as error:
            raise DataLossError(f"inputs[{place}]: {error}") from error

    try:
        for place, given in enumerate(inputs):
            field = f"inputs[{place}]"
            sequence = reader.read(items_of(given, field), field)
            if graph == "inspect":
                check_inspection_size(len(sequence.items), batcher, field)
            deadline = deadline_after(timeout)
            while (answer := _submit(batcher, sequence.items, deadline)) is None:
                if waiting:
                    yield take()
                else:
                    time.sleep(_RETRY_SECONDS)
            waiting.append((place, sequence, answer))
            if len(waiting) >= window:
                yield take()
        while waiting:
            yield take()
    finally:
        for _, _, answer in waiting:
            answer.cancel()


def _submit(batcher: Batcher, items: NDArray[Any], deadline: float | None) -> Future[Answer] | None:
    """The answer to come; None where the batcher is full."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceededError("the deadline passed while there was no room for the sequence")
    try:
        return batcher.submit(items, deadline)
    except OverloadedError:
        return None
