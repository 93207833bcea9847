"""Graphs that read whole sequences, run as the server runs them, against the PyTorch reference.

In a variant of lower precision `score` is held against the variant's own steps, and `predict` against the sequence
alone; the divergence of its predictions from PyTorch is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.certificate import Case, SequenceAgreement
from statewise.bundles.figures import AnswerDivergence, LabelDivergence, TokenAgreement, Tolerances
from statewise.bundles.manifest import OneShotGraph
from statewise.model.graph_io import OUTPUT, SEQUENCE_LOG_PROBABILITIES
from statewise.model.spec import LabelsHead
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.figures import describe_batch, describe_divergence, describe_outputs, describe_tokens
from statewise_export.certify.inputs import random_items
from statewise_export.certify.sequences.divergence import measure_answers, sequences_like
from statewise_export.certify.tolerances import against_itself, against_pytorch, agree, for_scores
from statewise_export.certify.totals import OutputTotals
from statewise_export.certify.trial import BATCH_SIZES, MAX_NEAR_LIMIT, Trial
from statewise_server.runtime.one_shot import OneShotRunner, bucket_of

Array = NDArray[Any]

SMALL_LENGTHS = tuple(range(1, 17))
"""A full batch of all lengths of the smallest bucket."""
ODD_LENGTHS = (17, 19, 23, 25, 29, 31, 32)
"""A batch of seven, which ends in full rows."""
PAIRS = ((33, 64), (65, 128))
"""Both borders of a bucket."""
MAX_INSPECTED = 128
"""Attention weights of longer sequences are too many to hold, and no server would send them."""


@dataclass
class SequenceFindings:
    """Findings about one graph, gathered batch by batch."""

    graph: OneShotGraph
    tolerances: Tolerances
    cases: list[Case] = field(default_factory=list)
    totals: OutputTotals = field(default_factory=OutputTotals)
    labels: TokenAgreement | None = None
    batch_invariant: bool = True
    divergence: LabelDivergence | AnswerDivergence | None = None

    @property
    def agreement(self) -> SequenceAgreement:
        """The record for the certificate, which has the cases apart."""
        return SequenceAgreement(
            graph=self.graph,
            tolerances=self.tolerances,
            outputs=self.totals.agreement,
            labels=self.labels,
            batch_invariant=self.batch_invariant,
            divergence=self.divergence,
        )


def _run(trial: Trial, graph: OneShotGraph) -> list[Outcome]:
    found = compare_graph(trial, graph)
    against = "PyTorch" if trial.is_exact else {"score": "single steps"}.get(graph, "the sequence alone")
    outcomes = [
        Outcome(
            f"{graph}: against {against}",
            all(case.passed for case in found.cases),
            describe_outputs(found.totals.agreement, found.tolerances),
            found.cases,
            {"sequences": (found.agreement,)},
        )
    ]
    if found.labels is not None:
        outcomes.append(Outcome(f"{graph}: labels", found.labels.all_equal, describe_tokens(found.labels)))
    figure = describe_batch(found.tolerances, is_invariant=found.batch_invariant)
    outcomes.append(Outcome(f"{graph}: alone = in a batch", found.batch_invariant, figure))
    if trial.limits is not None and found.divergence is not None:
        figure = describe_divergence(found.divergence, trial.limits)
        outcomes.append(Outcome(f"{graph}: divergence from float32", found.divergence.within(trial.limits), figure))
    return outcomes


def compare_graph(trial: Trial, graph: OneShotGraph) -> SequenceFindings:
    """Run sequences of every bucket through one graph, alone and in company."""
    spec, predictor = trial.spec, trial.predictor
    runner = OneShotRunner.load(trial.placed, trial.variant_name, graph)
    longest = spec.max_positions
    if graph == "inspect":
        longest = min(longest or MAX_INSPECTED, MAX_INSPECTED)
    batches = [random_items(spec, lengths, trial.scale) for lengths in batch_lengths(longest)]
    expect = _expectation(trial, graph, runner)
    expected = [[expect(row) for row in rows] for rows in batches]
    tolerances = against_pytorch(spec, trial.variant) if trial.is_exact else against_itself(_numbers(expected))
    if graph == "score" and trial.is_exact:
        tolerances = for_scores(tolerances, spec.head, predictor.outputs(batches[-1][-1]), batches[-1][-1])
    found = SequenceFindings(graph, tolerances)
    if graph == "predict" and isinstance(spec.prediction, LabelsHead):
        found.labels = TokenAgreement(compared=0, equal=0)
    for rows, answers in zip(batches, expected, strict=True):
        _compare_bucket(found, runner, rows, answers)
    if graph == "predict" and not trial.is_exact:
        items = trial.held_out if isinstance(trial.held_out, np.ndarray) else None
        found.divergence = measure_answers(runner, predictor, sequences_like(items, spec, trial.scale))
    return found


def _expectation(trial: Trial, graph: OneShotGraph, runner: OneShotRunner) -> Callable[[Array], Array]:
    """The expected answer to one sequence."""
    predictor = trial.predictor
    if graph == "inspect":
        return lambda row: _by_item(predictor.inspect(row))
    if trial.is_exact:
        return predictor.predict if graph == "predict" else predictor.score
    if graph == "predict":
        return lambda row: _answers(runner, graph, [row], runner.bucket_of(len(row)))[0]
    return lambda row: predictor.log_probabilities(trial.itself.outputs([row])[0], row)


def _numbers(expected: list[list[Array]]) -> Array:
    return np.concatenate([answer.ravel() for answers in expected for answer in answers])


def batch_lengths(max_positions: int | None) -> list[list[int]]:
    """Lengths of sequences that share a batch, one list for each bucket; the last one is near the model's limit."""
    lists = [list(SMALL_LENGTHS), list(ODD_LENGTHS), *map(list, PAIRS)]
    if max_positions is None:
        return lists
    fitting = [[length for length in lengths if length <= max_positions] for lengths in lists]
    last = min(max_positions, MAX_NEAR_LIMIT)
    if not any(last in lengths for lengths in fitting):
        width = bucket_of(last, max_positions)
        fitting.append([length for length in (last - 1, last) if bucket_of(length, max_positions) == width])
    return [lengths for lengths in fitting if lengths]


def _compare_bucket(found: SequenceFindings, runner: OneShotRunner, rows: list[Array], expected: list[Array]) -> None:
    """Each row alone, then batches of every size up to all of them; a row's place in its batch differs by size."""
    width = bucket_of(max(map(len, rows)), runner.max_positions)
    alone = [_answers(runner, found.graph, [row], width)[0] for row in rows]
    for row, actual, answer in zip(rows, alone, expected, strict=True):
        _record(found, [row], [actual], [answer])
    for size in BATCH_SIZES[1:]:
        if size > len(rows):
            break
        together = _answers(runner, found.graph, rows[-size:], width)
        _record(found, rows[-size:], together, expected[-size:])
        if found.tolerances.batch == "exact":
            pairs = zip(together, alone[-size:], strict=True)
            found.batch_invariant &= all(np.array_equal(a, b) for a, b in pairs)
        else:
            found.batch_invariant &= _agree(together, alone[-size:], found.tolerances)


def _record(found: SequenceFindings, rows: list[Array], actual: list[Array], expected: list[Array]) -> None:
    """Compare the answers to a batch with those expected, and add them as a case."""
    num_positions = sum(len(np.atleast_2d(e)) if found.graph == "predict" else len(e) for e in expected)
    largest = found.totals.add(actual, expected, num_positions)
    found.cases.append(
        Case(
            graph=found.graph,
            prompt_length=max(map(len, rows)),
            batch_size=len(rows),
            max_absolute_error=largest,
            passed=_agree(actual, expected, found.tolerances),
        )
    )
    if found.labels is not None:
        for a, e in zip(actual, expected, strict=True):
            found.labels = _with_labels(found.labels, np.atleast_2d(a), np.atleast_2d(e), found.tolerances)


def _agree(actual: list[Array], expected: list[Array], tolerances: Tolerances) -> bool:
    return all(agree(a, e, tolerances) for a, e in zip(actual, expected, strict=True) if e.size)


def _with_labels(counts: TokenAgreement, actual: Array, expected: Array, tolerances: Tolerances) -> TokenAgreement:
    """The counts with those of some more logits `[item, labels]`."""
    items = np.arange(len(expected))
    chosen, wanted = actual.argmax(axis=1), expected.argmax(axis=1)
    near_tie = tolerances.near_tie + tolerances.of_largest * np.abs(expected).max(axis=1)
    is_tie = (chosen != wanted) & (expected[items, wanted] - expected[items, chosen] <= near_tie)
    return TokenAgreement(
        compared=counts.compared + len(items),
        equal=counts.equal + int((chosen == wanted).sum()),
        near_ties=counts.near_ties + int(is_tie.sum()),
    )


def _answers(runner: OneShotRunner, graph: OneShotGraph, rows: Sequence[Array], width: int) -> list[Array]:
    return [_READ[graph](outputs) for outputs in runner.run_rows(rows, width)]


def _by_item(shown: Mapping[str, Array]) -> Array:
    """Inspection of each item, `[time, numbers]`: its weights as a query, and the units of its gates."""
    tensors = [shown[name] for name in sorted(shown)]
    return np.concatenate([np.moveaxis(t, -2, 0).reshape(t.shape[-2], -1) for t in tensors], axis=1)


NAMES: dict[OneShotGraph, str] = {"predict": OUTPUT, "score": SEQUENCE_LOG_PROBABILITIES}
"""The output of each graph."""
_READ: dict[OneShotGraph, Callable[[dict[str, Array]], Array]] = {
    **{graph: itemgetter(name) for graph, name in NAMES.items()},
    "inspect": _by_item,
}


def _check(graph: OneShotGraph) -> Check:
    return Check(
        f"{graph}: whole sequences",
        lambda trial: graph in trial.variant.one_shot_graphs,
        lambda trial: _run(trial, graph),
    )


PREDICT, SCORE, INSPECT = _check("predict"), _check("score"), _check("inspect")
