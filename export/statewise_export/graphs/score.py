"""Log-probabilities of given items, and log-densities of given vectors, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable

from statewise.model.spec import HeadSpec, MixtureHead, ModelSpec
from statewise_export.builder import GraphBuilder
from statewise_export.choosing.mixture import add_log_density

Score = Callable[[GraphBuilder, str, str, HeadSpec], str]
"""Outputs `[row, time, size]` and the items that they predict, `[row, time, ...]`, to `[row, time]`."""


def can_score(spec: ModelSpec) -> bool:
    """Whether a model of this kind finds items more or less probable, from its first state on."""
    return spec.generates and spec.source is None and spec.head.kind in _SCORES


def add_log_probabilities(op: GraphBuilder, outputs: str, items: str, head: HeadSpec) -> str:
    """The logarithm of each item's probability, float32 `[row, time]`."""
    return _SCORES[head.kind](op, outputs, items, head)


def _of_tokens(op: GraphBuilder, logits: str, tokens: str, head: HeadSpec) -> str:
    """LogSoftmax works row by row; ReduceLogSumExp adds up without care, 1e-4 off at 50,000 tokens, and slowly."""
    last = op.constant([2])
    return op.Squeeze(op.GatherElements(op.LogSoftmax(logits, axis=2), op.Unsqueeze(tokens, last), axis=2), last)


def _of_vectors(op: GraphBuilder, outputs: str, vectors: str, head: HeadSpec) -> str:
    assert isinstance(head, MixtureHead)
    flat_outputs = op.Reshape(outputs, op.constant([-1, head.output_size]))
    flat_vectors = op.Reshape(vectors, op.constant([-1, head.features]))
    place = op.Slice(op.Shape(vectors), op.constant([0]), op.constant([2]))
    return op.Reshape(add_log_density(op, flat_outputs, flat_vectors, head), place)


_SCORES: dict[str, Score] = {"categorical": _of_tokens, "mixture": _of_vectors}
