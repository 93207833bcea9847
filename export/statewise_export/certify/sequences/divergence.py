"""Divergence of a variant of lower precision from PyTorch in float32, in its predictions for whole sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import AnswerDivergence, LabelDivergence
from statewise.model.graph_io import OUTPUT
from statewise.model.spec import LabelsHead, ModelSpec
from statewise.rules.sampling import log_softmax
from statewise_export.certify.inputs import HeldOut, Scale, random_items
from statewise_server.runtime.one_shot import OneShotRunner
from statewise_training.reference.prediction import ReferencePredictor

Array = NDArray[Any]

NUM_ROWS = 64
ROW_LENGTH = 64
AS_PROBABLE = 0.95
"""A label that is at least so many times as probable as the most probable one is as good."""


def sequences_like(items: Array | None, spec: ModelSpec, scale: Scale) -> HeldOut:
    """The held-out items of a checkpoint, in sequences; where it has none, random ones."""
    length = min(ROW_LENGTH, spec.max_positions or ROW_LENGTH)
    if items is None:
        return HeldOut(random_items(spec, [length] * NUM_ROWS, scale), "sampled")
    length = min(length, len(items))
    num_rows = min(NUM_ROWS, len(items) // length)
    return HeldOut(list(items[: num_rows * length].reshape(num_rows, length, *items.shape[1:])), "data")


def measure_answers(
    runner: OneShotRunner, reference: ReferencePredictor, held_out: HeldOut
) -> LabelDivergence | AnswerDivergence:
    """Give the same sequences to both, and compare their predictions."""
    width = runner.bucket_of(max(map(len, held_out.rows)))
    actual = [runner.run_rows([row], width)[0][OUTPUT] for row in held_out.rows]
    expected = [reference.predict(row) for row in held_out.rows]
    # One line for each answer, whether there is one for a sequence or one for an item.
    ours, theirs = (np.concatenate([np.atleast_2d(answer) for answer in part]) for part in (actual, expected))
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if isinstance(reference.spec.prediction, LabelsHead):
        return _of_labels(ours, theirs, held_out)
    # Numbers that are always the same differ by no deviation, unless the variant's are others.
    deviation = np.maximum(theirs.std(axis=0), np.finfo(np.float32).tiny)
    differences = np.abs(ours - theirs) / deviation
    return AnswerDivergence(
        held_out=held_out.source,
        num_answers=len(ours),
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
    )


def _of_labels(actual: Array, expected: Array, held_out: HeldOut) -> LabelDivergence:
    log_q, log_p, items = log_softmax(actual), log_softmax(expected), np.arange(len(expected))
    return LabelDivergence(
        held_out=held_out.source,
        num_labels=len(actual),
        kl_divergence=float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        equal_labels=float(np.mean(log_p[items, log_q.argmax(axis=1)] >= log_p.max(axis=1) + np.log(AS_PROBABLE))),
    )
