"""Whole sequences through the real batcher: every caller gets the answer to its own sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import OneShotGraph
from statewise.errors import StatewiseError
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.inputs import random_items
from statewise_export.certify.sequences.graphs import NAMES
from statewise_export.certify.tolerances import against_pytorch, agree, for_scores
from statewise_export.certify.trial import Trial
from statewise_server.engine import EngineSettings
from statewise_server.engine.whole_sequences.predictor import Predictor
from statewise_server.runtime.one_shot import OneShotRunner

Array = NDArray[Any]

LENGTHS = (5, 3, 9, 33, 2, 17, 12, 5)
"""Lengths in several buckets, two of them equal, in an order that no batch has."""
SERVED_GRAPHS: tuple[OneShotGraph, ...] = ("predict", "score")
TIMEOUT_SECONDS = 120.0


def _run(trial: Trial) -> list[Outcome]:
    limit = trial.spec.max_positions or max(LENGTHS)
    rows = random_items(trial.spec, [min(length, limit) for length in LENGTHS], trial.scale)
    with _predictor(trial) as predictor:
        return [_compare(trial, predictor, graph, rows) for graph in SERVED_GRAPHS if _has(trial, graph)]


@contextmanager
def _predictor(trial: Trial) -> Iterator[Predictor]:
    predictor = Predictor(trial.placed, trial.variant_name, EngineSettings(max_batch_rows=3))
    try:
        yield predictor
    finally:
        predictor.close()


def _has(trial: Trial, graph: OneShotGraph) -> bool:
    return graph in trial.variant.one_shot_graphs


def _compare(trial: Trial, predictor: Predictor, graph: OneShotGraph, rows: list[Array]) -> Outcome:
    futures = predictor.batcher(graph).submit_all(rows)
    try:
        answers = [future.result(TIMEOUT_SECONDS)[NAMES[graph]] for future in futures]
    except (StatewiseError, TimeoutError) as error:
        return Outcome(f"served: {graph}", False, f"no answer: {error or 'it takes too long'}")
    expect = _expectation(trial, graph)
    errors, wrong = [0.0], []
    for index, (row, actual) in enumerate(zip(rows, answers, strict=True)):
        expected = expect(row)
        tolerances = against_pytorch(trial.spec, trial.variant)
        if graph == "score" and len(row) > 1:
            tolerances = for_scores(tolerances, trial.spec.head, trial.predictor.outputs(row), row)
        if actual.shape != expected.shape or not agree(actual, expected, tolerances):
            wrong.append(f"sequence {index} of {len(row)} items")
        elif expected.size:
            errors.append(float(np.abs(actual - expected).max()))
    figure = f"another answer to {', '.join(wrong)}" if wrong else f"max error {max(errors):.2e} in {len(rows)}"
    return Outcome(f"served: {graph}", not wrong, figure)


def _expectation(trial: Trial, graph: OneShotGraph) -> Callable[[Array], Array]:
    """PyTorch; of a variant of lower precision its graph's answer to the sequence alone, which has its own checks."""
    if trial.is_exact:
        return trial.predictor.predict if graph == "predict" else trial.predictor.score
    runner = OneShotRunner.load(trial.placed, trial.variant_name, graph)
    return lambda row: runner.run_rows([row], runner.bucket_of(len(row)))[0][NAMES[graph]]


WHOLE_SEQUENCES = Check(
    "whole sequences through the batcher", lambda trial: any(_has(trial, graph) for graph in SERVED_GRAPHS), _run
)
