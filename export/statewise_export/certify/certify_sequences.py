"""Graphs that read whole sequences, run as the server runs them, against the PyTorch reference.

In a variant of lower precision `score` is held against the variant's own steps. `predict` has nothing of its own to be
held against but the sequence alone; its divergence from PyTorch is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.certificate import (
    AnswerDivergence,
    Case,
    Certificate,
    LabelDivergence,
    Limits,
    OutputAgreement,
    SequenceAgreement,
    TokenAgreement,
    Tolerances,
)
from statewise.bundles.reader import Bundle
from statewise.model.spec import LabelsHead, ModelSpec
from statewise_export.certify.answer_divergence import measure_answers, sequences_like
from statewise_export.certify.inputs import DATA_SEED, Scale, random_items
from statewise_export.certify.self_reference import SelfReference
from statewise_export.certify.subject import subject_of
from statewise_export.certify.tolerances import against_itself, against_pytorch, agree, for_scores
from statewise_server.runtime.one_shot import OneShotRunner, bucket_of
from statewise_training.reference.decoding import ReferenceDecoder
from statewise_training.reference.prediction import ReferencePredictor

Array = NDArray[Any]
Graph = Literal["predict", "score", "inspect"]
Progress = Callable[[str], None]

GRAPHS: tuple[Graph, ...] = ("predict", "score", "inspect")

SMALL_LENGTHS = tuple(range(1, 17))
"""A full batch of all lengths of the smallest bucket."""
ODD_LENGTHS = (17, 19, 23, 25, 29, 31, 32)
"""A batch of seven, which ends in full rows."""
PAIRS = ((33, 64), (65, 128))
"""Both borders of a bucket."""
MAX_NEAR_LIMIT = 2047
"""A model of more positions is not filled: it would take too long, and show nothing new."""
MAX_INSPECTED = 128
"""Attention weights of longer sequences are too many to hold, and no server would send them."""
BATCH_SIZES = (1, 2, 7, 16)


@dataclass
class SequenceFindings:
    """What the comparison of one graph has found so far."""

    graph: Graph
    tolerances: Tolerances
    cases: list[Case] = field(default_factory=list)
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    positions: int = 0
    labels: TokenAgreement | None = None
    batch_invariant: bool = True
    divergence: LabelDivergence | AnswerDivergence | None = None

    def passes(self, limits: Limits | None) -> bool:
        """Whether all that was compared is as it should be."""
        is_close = self.divergence is None or limits is None or self.divergence.within(limits)
        return is_close and self.agreement().passed and all(case.passed for case in self.cases)

    def agreement(self) -> SequenceAgreement:
        """All but the cases, for the certificate."""
        return SequenceAgreement(
            graph=self.graph,
            tolerances=self.tolerances,
            outputs=OutputAgreement(
                max_absolute_error=self.max_absolute_error,
                max_relative_error=self.max_relative_error,
                positions_compared=self.positions,
            ),
            labels=self.labels,
            batch_invariant=self.batch_invariant,
            divergence=self.divergence,
        )


def certify_sequences(
    bundle: Bundle,
    variant_name: str,
    reference: ReferenceDecoder,
    scale: Scale,
    progress: Progress,
    *,
    limits: Limits | None,
    itself: SelfReference | None = None,
    held_out: Array | None = None,
    device: str | None = None,
) -> list[SequenceFindings]:
    """Compare every graph of a variant that reads whole sequences.

    With `limits` scores are held against the variant's own steps, `itself`; arguments as for `certify`.
    """
    variant, spec, predictor = bundle.variant(variant_name), reference.spec, ReferencePredictor(reference)
    is_exact = limits is None
    every = []
    for graph in (graph for graph in GRAPHS if graph in variant.one_shot_graphs):
        progress(f"{graph}: whole sequences")
        runner = OneShotRunner.load(bundle, variant_name, graph, device=device)
        longest = spec.max_positions
        if graph == "inspect":
            longest = min(longest or MAX_INSPECTED, MAX_INSPECTED)
        batches = [random_items(spec, lengths, scale) for lengths in batch_lengths(longest)]
        expect = _expectation(graph, runner, predictor, itself, is_exact=is_exact)
        expected = [[expect(row) for row in rows] for rows in batches]
        tolerances = against_pytorch(spec, variant) if is_exact else against_itself(_numbers(expected))
        if graph == "score" and is_exact:
            tolerances = for_scores(tolerances, spec.head, predictor.outputs(batches[-1][-1]), batches[-1][-1])
        found = _compare(graph, runner, spec, batches, expected, tolerances)
        if graph == "predict" and not is_exact:
            found.divergence = measure_answers(runner, predictor, sequences_like(held_out, spec, scale))
        every.append(found)
    return every


def certify_without_steps(
    bundle: Bundle,
    variant_name: str,
    reference: ReferenceDecoder,
    scale: Scale,
    progress: Progress,
    *,
    limits: Limits | None,
    held_out: Array | None,
    device: str | None,
) -> Certificate:
    """The certificate of a model that only reads whole sequences; arguments as for `certify`."""
    found, *others = certify_sequences(
        bundle, variant_name, reference, scale, progress, limits=limits, held_out=held_out, device=device
    )
    agreement = found.agreement()
    return Certificate(
        **subject_of(bundle, variant_name, limits),
        passed=all(graph.passes(limits) for graph in (found, *others)),
        tolerances=agreement.tolerances,
        outputs=agreement.outputs,
        batch_invariant=agreement.batch_invariant,
        chunk_invariant=True,
        sequences=(agreement, *(graph.agreement() for graph in others)),
        divergence=agreement.divergence,
        cases=tuple(case for graph in (found, *others) for case in graph.cases),
        seeds=(DATA_SEED,),
    )


def _expectation(
    graph: Graph, runner: OneShotRunner, predictor: ReferencePredictor, itself: SelfReference | None, *, is_exact: bool
) -> Callable[[Array], Array]:
    """What gives the answer that one sequence is held against."""
    if graph == "inspect":
        return lambda row: _by_item(predictor.inspect(row))
    if is_exact:
        return predictor.predict if graph == "predict" else predictor.score
    if graph == "predict":
        return lambda row: _answers(runner, graph, [row], runner.bucket_of(len(row)))[0]
    assert itself is not None
    return lambda row: predictor.log_probabilities(itself.outputs([row])[0], row)


def _numbers(expected: list[list[Array]]) -> Array:
    return np.concatenate([answer.ravel() for answers in expected for answer in answers])


def _compare(
    graph: Graph,
    runner: OneShotRunner,
    spec: ModelSpec,
    batches: list[list[Array]],
    expected: list[list[Array]],
    tolerances: Tolerances,
) -> SequenceFindings:
    """Run sequences of every bucket, alone and in company."""
    found = SequenceFindings(graph, tolerances)
    if graph == "predict" and isinstance(spec.prediction, LabelsHead):
        found.labels = TokenAgreement(compared=0, equal=0)
    for rows, answers in zip(batches, expected, strict=True):
        _compare_bucket(found, runner, rows, answers)
    return found


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
    errors = [np.abs(a.astype(np.float64) - e) for a, e in zip(actual, expected, strict=True)]
    relative = [error / np.maximum(np.abs(e), 1.0) for error, e in zip(errors, expected, strict=True)]
    # NumPy's maximum keeps a NaN, Python's max would lose it.
    largest = np.max([error.max(initial=0.0) for error in errors])
    found.max_absolute_error = float(np.maximum(found.max_absolute_error, largest))
    found.max_relative_error = float(np.max([found.max_relative_error, *(r.max(initial=0.0) for r in relative)]))
    found.positions += sum(len(np.atleast_2d(e)) if found.graph == "predict" else len(e) for e in expected)
    found.cases.append(
        Case(
            graph=found.graph,
            prompt_length=max(map(len, rows)),
            batch_size=len(rows),
            max_absolute_error=float(largest),
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


def _answers(runner: OneShotRunner, graph: Graph, rows: Sequence[Array], width: int) -> list[Array]:
    return [_READ[graph](outputs) for outputs in runner.run_rows(rows, width)]


def _by_item(shown: Mapping[str, Array]) -> Array:
    """All that is shown of each item, `[time, numbers]`: its weights as a query, and the units of its gates."""
    tensors = [shown[name] for name in sorted(shown)]
    return np.concatenate([np.moveaxis(t, -2, 0).reshape(t.shape[-2], -1) for t in tensors], axis=1)


_READ: dict[Graph, Callable[[dict[str, Array]], Array]] = {
    "predict": itemgetter("output"),
    "score": itemgetter("log_probabilities"),
    "inspect": _by_item,
}
