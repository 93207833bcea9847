"""What the engine gives, as messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from statewise.model.spec import LabelsHead
from statewise.v1 import generation_pb2 as pb

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, Hypothesis, TokenLogProbability
    from statewise_server.repository.repository import ModelEntry

_FINISH_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}

_STATES = {
    "loading": pb.MODEL_STATE_LOADING,
    "ready": pb.MODEL_STATE_READY,
    "refused": pb.MODEL_STATE_REFUSED,
}


def response_of(delta: Delta) -> pb.GenerateResponse:
    """Return what a stream has gained as a message; an error is left to the caller."""
    response = pb.GenerateResponse(text=delta.text)
    if delta.items and isinstance(delta.items[0], np.ndarray):
        response.vectors.features = len(delta.items[0])
        response.vectors.values.extend(np.concatenate(delta.items).tolist())
    else:
        response.tokens.extend(delta.items)
    if delta.log_probabilities:
        response.log_probabilities.extend(_log_probabilities(delta.log_probabilities))
    if delta.finish_reason is not None:
        response.finish_reason = _FINISH_REASONS[delta.finish_reason]
    response.hypotheses.extend(map(_hypothesis, delta.hypotheses))
    return response


def _hypothesis(hypothesis: Hypothesis) -> pb.Hypothesis:
    return pb.Hypothesis(
        text=hypothesis.text,
        tokens=hypothesis.tokens,
        log_probability=hypothesis.log_probability,
        score=hypothesis.score,
        finish_reason=_FINISH_REASONS[hypothesis.finish_reason],
    )


def _log_probabilities(entries: Iterable[TokenLogProbability]) -> Iterable[pb.TokenLogProbability]:
    for entry in entries:
        top = [
            pb.TokenLogProbability(token=token, log_probability=log_probability) for token, log_probability in entry.top
        ]
        yield pb.TokenLogProbability(token=entry.token, log_probability=entry.log_probability, top=top)


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
