"""PredictionService.Predict: labels, tags, embeddings or values of whole sequences."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import HeadSpec, LabelsHead
from statewise.rules.sampling import log_softmax
from statewise.v1 import prediction_pb2 as pb
from statewise_server.services.v1.answers import answer_inputs, info_of
from statewise_server.services.v1.items import ReadSequence

if TYPE_CHECKING:
    from statewise_server.repository.repository import Repository

Output = NDArray[np.float32]
Say = Callable[[Output, ReadSequence], pb.Prediction]


async def predict(request: pb.PredictRequest, repository: Repository, seconds_left: float | None) -> pb.PredictResponse:
    """Answer one request. Raises InvalidRequestError, naming the field, and whatever keeps the model from running."""
    predictor, sequences, answers = await answer_inputs(
        repository, request.model, request.version, "predict", request.inputs, seconds_left
    )
    head = predictor.manifest.model.prediction
    assert head is not None
    say = _sayer(head)

    def respond() -> pb.PredictResponse:
        pairs = zip(answers, sequences, strict=True)
        return pb.PredictResponse(
            predictions=[say(answer["output"], sequence) for answer, sequence in pairs],
            info=info_of(predictor),
            labels=head.names if isinstance(head, LabelsHead) else (),
        )

    # Hundreds of embeddings in a message: long enough for running streams to notice.
    return await asyncio.to_thread(respond)


def _sayer(head: HeadSpec) -> Say:
    if isinstance(head, LabelsHead):
        names = head.names
        if head.per == "item":
            return lambda logits, sequence: pb.Prediction(tags=_tags(logits, sequence, names))
        return lambda logits, _: pb.Prediction(label=_label(logits, names))
    kind = "embedding" if head.kind == "embedding" else "value"
    return lambda values, _: pb.Prediction(**{kind: pb.Vector(values=values.tolist())})  # type: ignore[arg-type] # by name


def _label(logits: Output, names: tuple[str, ...]) -> pb.Label:
    probabilities = _probabilities(logits)
    return pb.Label(name=names[int(logits.argmax())], probabilities=probabilities.tolist())


def _tags(logits: Output, sequence: ReadSequence, names: tuple[str, ...]) -> pb.Tags:
    """Return one tag for each item that was sent, none for tokens that were added; `logits` `[time, labels]`."""
    logits = logits[sequence.num_before : len(logits) - sequence.num_after]
    chosen = logits.argmax(axis=1)
    probabilities = np.take_along_axis(_probabilities(logits), chosen[:, None], axis=1)[:, 0]
    starts, ends = zip(*sequence.spans, strict=True) if sequence.spans else ((), ())
    return pb.Tags(
        names=[names[label] for label in chosen], probabilities=probabilities.tolist(), starts=starts, ends=ends
    )


def _probabilities(logits: Output) -> NDArray[Any]:
    return np.exp(log_softmax(logits.astype(np.float64)))
