"""Log-probabilities of given items, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable

from export.builder import GraphBuilder
from statewise.model_spec import HeadSpec, ModelSpec

Score = Callable[[GraphBuilder, str, str, HeadSpec], str]
"""Outputs `[row, time, size]` and the items that they foretell, `[row, time, ...]`, to `[row, time]`."""


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


_SCORES: dict[str, Score] = {"categorical": _of_tokens}
