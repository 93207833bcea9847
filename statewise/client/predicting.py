"""Predict, Score and Inspect, as both clients call them: arguments to requests, messages to values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from statewise.client.core import set_field, set_items
from statewise.client.items import is_frame, items_of
from statewise.client.values import Inspection, Prediction, PredictionInfo, Prompt, Score, Tag
from statewise.errors import InternalError, InvalidRequestError
from statewise.v1 import prediction_pb2


def predict_request(model: str, inputs: Sequence[Prompt], version: int) -> prediction_pb2.PredictRequest:
    """Build the request. Raises InvalidRequestError for what a message cannot hold."""
    request = prediction_pb2.PredictRequest()
    _set_inputs(request, model, inputs, version)
    return request


def score_request(model: str, inputs: Sequence[Prompt], version: int) -> prediction_pb2.ScoreRequest:
    """Build the request. Raises InvalidRequestError for what a message cannot hold."""
    request = prediction_pb2.ScoreRequest()
    _set_inputs(request, model, inputs, version)
    return request


def _set_inputs(
    request: prediction_pb2.PredictRequest | prediction_pb2.ScoreRequest,
    model: str,
    inputs: Sequence[Prompt],
    version: int,
) -> None:
    if isinstance(inputs, str) or is_frame(inputs):
        kind = "text" if isinstance(inputs, str) else "table"
        raise InvalidRequestError(f"must be a list of sequences; put the one {kind} into a list", field="inputs")
    set_field(request, "model", model)
    set_field(request, "version", version)
    for index, sequence in enumerate(inputs):
        field = f"inputs[{index}]"
        set_items(request.inputs.add(), items_of(sequence, field), field)


def inspect_request(model: str, sequence: Prompt, version: int) -> prediction_pb2.InspectRequest:
    """Build the request. Raises InvalidRequestError for what a message cannot hold."""
    request = prediction_pb2.InspectRequest()
    set_field(request, "model", model)
    set_field(request, "version", version)
    set_items(request.input, items_of(sequence, "sequence"), "sequence")
    return request


def predictions_from(response: prediction_pb2.PredictResponse) -> list[Prediction]:
    """Read what a model says of each sequence."""
    info = _prediction_info(response.info)
    return [_prediction(message, tuple(response.labels), info) for message in response.predictions]


def embeddings_from(predictions: Sequence[Prediction]) -> list[NDArray[np.float32]]:
    """Return the embedding of each prediction. Raises InvalidRequestError where the model makes none."""
    embeddings = [prediction.embedding for prediction in predictions if prediction.embedding is not None]
    if len(embeddings) < len(predictions):
        raise InvalidRequestError(f"{predictions[0].info.model!r} makes no embeddings; use predict", field="model")
    return embeddings


def _prediction(message: prediction_pb2.Prediction, labels: tuple[str, ...], info: PredictionInfo) -> Prediction:
    kind = message.WhichOneof("kind")
    if kind == "label":
        probabilities = dict(zip(labels, message.label.probabilities, strict=True))
        return Prediction(info, label=message.label.name, probabilities=probabilities)
    if kind == "tags":
        return Prediction(info, tags=_tags(message.tags))
    if kind is None:
        raise InternalError("the server's answer is empty; client and server may be of different versions")
    vector = np.array(getattr(message, kind).values, np.float32)
    return Prediction(info, embedding=vector) if kind == "embedding" else Prediction(info, value=vector)


def _tags(message: prediction_pb2.Tags) -> tuple[Tag, ...]:
    if not message.starts:
        return tuple(map(Tag, message.names, message.probabilities))
    return tuple(map(Tag, message.names, message.probabilities, message.starts, message.ends))


def scores_from(response: prediction_pb2.ScoreResponse) -> list[Score]:
    """Read how probable a model finds each sequence."""
    info = _prediction_info(response.info)
    return [
        Score(info, np.array(message.log_probabilities, np.float32), message.total, tuple(message.tokens))
        for message in response.scores
    ]


def _prediction_info(message: prediction_pb2.PredictionInfo) -> PredictionInfo:
    return PredictionInfo(message.model, message.version, message.variant)


def inspection_from(response: prediction_pb2.InspectResponse) -> Inspection:
    """Read what a model shows."""
    return Inspection(
        items=tuple(response.items),
        tensors={t.name: np.array(t.values, np.float32).reshape(tuple(t.shape)) for t in response.tensors},
        info=_prediction_info(response.info),
    )
