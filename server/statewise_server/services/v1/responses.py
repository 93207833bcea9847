"""Plain values as messages of statewise.v1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from statewise.client.values import (
    Chunk,
    Forecast,
    Inspection,
    Prediction,
    PredictionInfo,
    Score,
    Tag,
    TokenLogProbability,
)
from statewise.model.spec import LabelsHead
from statewise.v1 import generation_pb2 as pb
from statewise.v1 import prediction_pb2

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.predictor import Predictor
    from statewise_server.repository.repository import ModelEntry

_FINISH_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}

_STATES = {
    "loading": pb.MODEL_STATE_LOADING,
    "ready": pb.MODEL_STATE_READY,
    "refused": pb.MODEL_STATE_REFUSED,
}


def generate_response(chunk: Chunk) -> pb.GenerateResponse:
    """Return a chunk as a message."""
    response = pb.GenerateResponse(text=chunk.text, tokens=chunk.tokens)
    if chunk.vectors is not None:
        response.vectors.CopyFrom(_vectors(chunk.vectors))
    if chunk.log_probabilities:
        response.log_probabilities.extend(_log_probabilities(chunk.log_probabilities))
    if chunk.finish_reason is not None:
        response.finish_reason = _FINISH_REASONS[chunk.finish_reason]
    if (usage := chunk.usage) is not None:
        response.usage.prompt_tokens, response.usage.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        response.usage.cached_prompt_tokens = usage.cached_prompt_tokens
        response.usage.source_tokens = usage.source_tokens
    if (info := chunk.info) is not None:
        response.info.model, response.info.version = info.model, info.version
        response.info.variant, response.info.seed = info.variant, info.seed
    for found in chunk.hypotheses:
        response.hypotheses.add(
            text=found.text,
            tokens=found.tokens,
            log_probability=found.log_probability,
            score=found.score,
            finish_reason=_FINISH_REASONS[found.finish_reason],
        )
    return response


def _log_probabilities(entries: Iterable[TokenLogProbability]) -> Iterable[pb.TokenLogProbability]:
    for entry in entries:
        top = [pb.TokenLogProbability(token=other.token, log_probability=other.log_probability) for other in entry.top]
        yield pb.TokenLogProbability(token=entry.token, log_probability=entry.log_probability, top=top)


def predict_response(predictions: Sequence[Prediction], predictor: Predictor) -> prediction_pb2.PredictResponse:
    """Return the predictions of one request as a message."""
    head = predictor.manifest.model.prediction
    return prediction_pb2.PredictResponse(
        predictions=map(_prediction, predictions),
        info=_info(predictions[0].info),
        labels=head.names if isinstance(head, LabelsHead) else (),
    )


def _prediction(prediction: Prediction) -> prediction_pb2.Prediction:
    if prediction.probabilities is not None:
        probabilities = prediction.probabilities.values()
        return prediction_pb2.Prediction(
            label=prediction_pb2.Label(name=prediction.label or "", probabilities=probabilities)
        )
    if prediction.tags is not None:
        return prediction_pb2.Prediction(tags=_tags(prediction.tags))
    if prediction.embedding is not None:
        return prediction_pb2.Prediction(embedding=prediction_pb2.Vector(values=prediction.embedding.tolist()))
    assert prediction.value is not None
    return prediction_pb2.Prediction(value=prediction_pb2.Vector(values=prediction.value.tolist()))


def _tags(tags: Sequence[Tag]) -> prediction_pb2.Tags:
    return prediction_pb2.Tags(
        names=[tag.label for tag in tags],
        probabilities=[tag.probability for tag in tags],
        starts=[tag.start for tag in tags if tag.start is not None],
        ends=[tag.end for tag in tags if tag.end is not None],
    )


def score_response(scores: Sequence[Score]) -> prediction_pb2.ScoreResponse:
    """Return the scores of one request as a message."""
    messages = [
        prediction_pb2.Score(log_probabilities=score.log_probabilities.tolist(), total=score.total, tokens=score.tokens)
        for score in scores
    ]
    return prediction_pb2.ScoreResponse(scores=messages, info=_info(scores[0].info))


def inspect_response(inspection: Inspection) -> prediction_pb2.InspectResponse:
    """Return what a model shows as a message."""
    response = prediction_pb2.InspectResponse(items=inspection.items, info=_info(inspection.info))
    for name, values in inspection.tensors.items():
        response.tensors.add(name=name, shape=values.shape, values=values.ravel().tolist())
    return response


def forecast_response(forecast: Forecast) -> prediction_pb2.ForecastResponse:
    """Return a forecast as a message."""
    series = [
        prediction_pb2.QuantileSeries(quantile=level, values=_vectors(values))
        for level, values in zip(forecast.levels, forecast.quantiles, strict=True)
    ]
    return prediction_pb2.ForecastResponse(
        quantiles=series,
        mean=_vectors(forecast.mean),
        paths=() if forecast.paths is None else map(_vectors, forecast.paths),
        info=_info(forecast.info),
        seed=forecast.seed,
    )


def _vectors(values: NDArray[Any]) -> pb.VectorSequence:
    return pb.VectorSequence(features=values.shape[1], values=values.ravel().tolist())


def _info(info: PredictionInfo) -> prediction_pb2.PredictionInfo:
    return prediction_pb2.PredictionInfo(model=info.model, version=info.version, variant=info.variant)


def model_of(entry: ModelEntry) -> pb.Model:
    """Describe one model of the repository, loaded or not."""
    model = pb.Model(name=entry.name, version=entry.version, state=_STATES[entry.state], reason=entry.reason or "")
    if entry.manifest is not None:
        _describe_manifest(model, entry)
    if entry.engine is not None:
        _describe_engine(model, entry.engine)
    if entry.predictor is not None:
        model.variant = entry.predictor.variant_name
        model.max_items = entry.predictor.max_items
    model.methods.extend(entry.methods)
    return model


def _describe_manifest(model: pb.Model, entry: ModelEntry) -> None:
    manifest = entry.manifest
    assert manifest is not None
    reads, special = manifest.model.input, manifest.special_tokens
    model.plugin = manifest.plugin
    model.input_kind = reads.kind
    model.head_kind = manifest.model.head.kind
    model.input_size = reads.vocabulary_size if reads.kind == "tokens" else reads.features
    if isinstance(manifest.model.head, LabelsHead):
        model.labels.extend(manifest.model.head.names)
    if (source := manifest.model.source) is not None:
        model.source_kind = source.kind
        model.source_size = source.vocabulary_size if source.kind == "tokens" else source.features
        model.max_source_tokens = manifest.model.max_source_positions or 0
    model.has_tokenizer = manifest.tokenizer is not None
    if special.start is not None:
        model.start_token = special.start
    if special.end is not None:
        model.end_token = special.end


def _describe_engine(model: pb.Model, engine: Engine) -> None:
    limits = engine.limits
    model.variant = engine.variant_name
    model.state_bytes_per_row = engine.memory.bytes_per_row
    model.state_budget_bytes = engine.memory.budget
    model.max_positions = limits.max_positions or 0
    model.max_prompt_tokens = limits.max_prompt_tokens
    model.max_tokens = limits.max_tokens
    model.max_rows = engine.memory.max_rows
    model.max_waiting = limits.max_waiting
    model.running = engine.num_running
    model.waiting = engine.num_waiting
