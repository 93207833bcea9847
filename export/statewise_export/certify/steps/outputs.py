"""Outputs at every position, in ragged batches and in chunks, against the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.certificate import Case
from statewise.bundles.figures import Tolerances
from statewise.model.spec import TokenInput, ValueHead
from statewise.rules.sampling import GREEDY
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.figures import describe_outputs
from statewise_export.certify.inputs import Prompts, random_items, random_sources
from statewise_export.certify.steps.invariance import MIXED_CHUNK, STEPS_PER_RUN
from statewise_export.certify.tolerances import agree
from statewise_export.certify.totals import OutputTotals
from statewise_export.certify.trial import BATCH_SIZES, MAX_NEAR_LIMIT, Trial

Array = NDArray[Any]

CHUNKS = (None, 1, 16, 64)
NUM_REAL_GENERATED = 32
"""Real vectors fed back let rounding grow, so that a long run says little."""


@dataclass
class OutputErrors:
    """Errors of outputs, gathered case by case."""

    tolerances: Tolerances
    units: NDArray[np.float64]
    cases: list[Case] = field(default_factory=list)
    totals: OutputTotals = field(default_factory=OutputTotals)

    def add(
        self, pairs: Sequence[tuple[Array, Array]], batch: Prompts, chunk: int | None, *, mixed: bool = False
    ) -> None:
        """Compare pairs of actual and expected outputs of one batch, and record them as a case."""
        actual = np.concatenate([np.atleast_2d(a) for a, _ in pairs]) / self.units
        expected = np.concatenate([np.atleast_2d(e) for _, e in pairs]) / self.units
        largest = self.totals.add([actual], [expected], len(actual))
        self.cases.append(
            Case(
                prompt_length=max(map(len, batch.items)),
                source_length=max(map(len, batch.sources)) if batch.sources else None,
                batch_size=len(batch),
                chunk=chunk,
                mixed=mixed,
                max_absolute_error=largest,
                passed=agree(actual, expected, self.tolerances),
            )
        )


def _run(trial: Trial) -> list[Outcome]:
    errors = OutputErrors(trial.tolerances, trial.units)
    _compare_batches(trial, errors)
    if trial.spec.max_positions is not None:
        _compare_near_limit(trial, errors)
    in_chunks = all(case.passed for case in errors.cases if case.chunk is not None)
    if trial.decoder.runner.can_mix:
        _compare_mixed(trial, errors)
    if isinstance(trial.spec.head, ValueHead):
        _compare_fed_back(trial, errors)
    against = "PyTorch" if trial.is_exact else "single steps"
    return [
        Outcome(
            f"outputs against {against}",
            all(case.passed for case in errors.cases),
            describe_outputs(errors.totals.agreement, errors.tolerances),
            errors.cases,
            {"tolerances": errors.tolerances, "outputs": errors.totals.agreement},
        ),
        Outcome(
            "prompt in chunks = whole",
            in_chunks,
            "within limit" if in_chunks else "differs",
            figures={"chunk_invariant": in_chunks},
        ),
    ]


def _batches(num_prompts: int) -> Iterator[list[int]]:
    """Ragged batches of every size, each with the longest prompt; and every prompt alone. By their numbers."""
    yield from ([prompt] for prompt in range(num_prompts))
    for size in BATCH_SIZES[1:]:
        yield [num_prompts - 1 - index % num_prompts for index in range(size)]


def _compare_batches(trial: Trial, errors: OutputErrors) -> None:
    expected = trial.reference.outputs(trial.prompts.items, trial.prompts.sources)
    for rows in _batches(len(trial.prompts)):
        for chunk in CHUNKS:
            _compare_batch(trial, errors, trial.prompts.take(rows), chunk, [expected[row] for row in rows])


def _compare_near_limit(trial: Trial, errors: OutputErrors) -> None:
    """A prompt that all but fills a bounded state, whole and in chunks, behind the longest source."""
    assert trial.spec.max_positions is not None
    longest = random_items(trial.spec, (min(trial.spec.max_positions - 1, MAX_NEAR_LIMIT),), trial.scale)
    prompts = Prompts(longest, random_sources(trial.spec, (MAX_NEAR_LIMIT,)))
    expected = trial.reference.outputs(prompts.items, prompts.sources)
    for chunk in (None, 64):
        _compare_batch(trial, errors, prompts, chunk, expected)


def _compare_batch(
    trial: Trial, errors: OutputErrors, batch: Prompts, chunk: int | None, expected: Sequence[Array]
) -> None:
    outputs = trial.decoder.prefill(batch.items, [GREEDY] * len(batch), chunk, batch.sources).outputs
    errors.add(_pairs(outputs, expected), batch, chunk)


def _compare_mixed(trial: Trial, errors: OutputErrors) -> None:
    """Rows that decode while a prompt is read, and that prompt; the reference reads the items that those rows chose."""
    prompts = trial.prompts.take([0, 0]) if len(trial.prompts) == 1 else trial.prompts
    greedy = [GREEDY] * len(prompts)
    items, _, outputs = trial.decoder.generate_beside(prompts.items, greedy, MIXED_CHUNK, prompts.sources)
    read = [np.concatenate([prompt, own[:-1]]) for prompt, own in zip(prompts.items, items, strict=True)]
    if isinstance(trial.spec.input, TokenInput):
        read = [row.clip(0) for row in read]  # -1 stands for outputs that are not finite, and an embedding has no -1
    pairs = _pairs(outputs, trial.reference.outputs(read, prompts.sources))
    errors.add(pairs, prompts, MIXED_CHUNK, mixed=True)


def _compare_fed_back(trial: Trial, errors: OutputErrors) -> None:
    prompts = trial.prompts
    params = [GREEDY] * len(prompts)
    count = min(NUM_REAL_GENERATED, trial.position_limit - max(map(len, prompts.items)))
    actual, _ = trial.decoder.generate(
        prompts.items, params, count, prompts.sources, chunk=16, steps_per_run=STEPS_PER_RUN
    )
    expected, _ = trial.reference.generate(prompts.items, params, count, prompts.sources)
    errors.add(list(zip(actual, expected, strict=True)), prompts, 16)


def _pairs(outputs: Sequence[dict[int, Array]], expected: Sequence[Array]) -> list[tuple[Array, Array]]:
    """The outputs of every row at some positions, each with the one expected there."""
    rows = zip(outputs, expected, strict=True)
    return [(output, row[position]) for at, row in rows for position, output in at.items()]


OUTPUTS = Check("outputs at every position", lambda trial: trial.spec.generates, _run)
