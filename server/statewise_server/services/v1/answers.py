"""What Predict, Score and Inspect share: from a request's sequences to the outputs of a graph for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from statewise.bundles.manifest import OneShotGraph
from statewise.errors import DataLossError
from statewise.v1 import generation_pb2
from statewise.v1 import prediction_pb2 as pb
from statewise_server.services.v1.items import ReadSequence, read_inputs
from statewise_server.services.v1.reading import read_deadline, read_version

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.batcher import Answer, Batcher
    from statewise_server.engine.whole_sequences.predictor import Predictor
    from statewise_server.repository.repository import Repository


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
    predictor, batcher, deadline = await open_graph(repository, model, version, graph, seconds_left)
    sequences = await read_inputs(inputs, predictor)
    return predictor, sequences, await _run(batcher, [sequence.items for sequence in sequences], deadline)


async def open_graph(
    repository: Repository, model: str, version: int, graph: OneShotGraph, seconds_left: float | None
) -> tuple[Predictor, Batcher, float | None]:
    """The model, its graph and the request's deadline, in time.monotonic() seconds; raises as `answer_inputs`."""
    deadline = read_deadline(seconds_left)
    predictor = repository.predictor(model, read_version(version))
    return predictor, await _batcher(predictor, graph), deadline


def info_of(model: Engine | Predictor) -> pb.PredictionInfo:
    """What answers."""
    manifest = model.manifest
    return pb.PredictionInfo(model=manifest.name, version=manifest.version, variant=model.variant_name)


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
