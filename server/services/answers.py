"""What Predict and Score share: from a request's sequences to the outputs of a graph for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from server.services.items import ReadSequence, read_inputs
from statewise.errors import DataLossError, DeadlineExceededError, InvalidRequestError
from statewise.manifest import OneShotGraph
from statewise.v1 import generation_pb2
from statewise.v1 import prediction_pb2 as pb

if TYPE_CHECKING:
    from server.engine.batcher import Answer, Batcher
    from server.engine.predictor import Predictor
    from server.repository import Repository


async def answer_inputs(
    repository: Repository,
    model: str,
    version: int,
    graph: OneShotGraph,
    inputs: Sequence[generation_pb2.Items],
    seconds_left: float | None,
) -> tuple[Predictor, list[ReadSequence], list[Answer]]:
    """Read the sequences and run them; one answer for each. However it ends, none of them waits for a batch any more.

    Raises InvalidRequestError, naming the field, DeadlineExceededError, and what repository and batcher raise.
    """
    if seconds_left is not None and seconds_left <= 0:
        raise DeadlineExceededError("the deadline had passed when the request came")
    deadline = None if seconds_left is None else time.monotonic() + seconds_left
    if version < 0:
        raise InvalidRequestError(f"must be 0 (newest) or more, got {version}", field="version")
    predictor = repository.predictor(model, version)
    batcher = await _batcher(predictor, graph)
    sequences = await read_inputs(inputs, predictor)
    return predictor, sequences, await _run(batcher, [sequence.items for sequence in sequences], deadline)


def info_of(predictor: Predictor) -> pb.PredictionInfo:
    """What answers."""
    manifest = predictor.manifest
    return pb.PredictionInfo(model=manifest.name, version=manifest.version, variant=predictor.variant_name)


async def _batcher(predictor: Predictor, graph: OneShotGraph) -> Batcher:
    """Loaded at its first use, which takes a while."""
    if graph in predictor.batchers:
        return predictor.batcher(graph)
    return await asyncio.to_thread(predictor.batcher, graph)


async def _run(batcher: Batcher, rows: Sequence[NDArray[Any]], deadline: float | None) -> list[Answer]:
    waiting = [asyncio.wrap_future(answer) for answer in batcher.submit_all(rows, deadline)]
    # A caller that goes away cancels this, and with it what waits.
    results = await asyncio.gather(*waiting, return_exceptions=True)
    answers: list[Answer] = []
    for index, result in enumerate(results):
        if isinstance(result, DataLossError):
            raise DataLossError(f"inputs[{index}]: {result}") from result
        if isinstance(result, BaseException):
            raise result
        answers.append(result)
    return answers
