"""PredictionService.Score: how probable a model finds given sequences, item by item."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from statewise.v1 import prediction_pb2 as pb
from statewise_server.services.v1.answers import answer_inputs, info_of
from statewise_server.services.v1.items import ReadSequence

if TYPE_CHECKING:
    from statewise_server.engine.whole_sequences.batcher import Answer
    from statewise_server.repository.repository import Repository


async def score(request: pb.ScoreRequest, repository: Repository, seconds_left: float | None) -> pb.ScoreResponse:
    """Answer one request. Raises InvalidRequestError, naming the field, and whatever keeps the model from running."""
    predictor, sequences, answers = await answer_inputs(
        repository, request.model, request.version, "score", request.inputs, seconds_left
    )

    def respond() -> pb.ScoreResponse:
        return pb.ScoreResponse(scores=map(_score, answers, sequences), info=info_of(predictor))

    return await asyncio.to_thread(respond)


def _score(answer: Answer, sequence: ReadSequence) -> pb.Score:
    values = answer["log_probabilities"]
    is_tokens = sequence.items.ndim == 1
    return pb.Score(
        log_probabilities=values.tolist(),
        total=float(values.sum(dtype=np.float64)),
        tokens=sequence.items[sequence.num_before :].tolist() if is_tokens else (),
    )
