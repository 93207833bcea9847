"""The expected answers: PyTorch's outputs behind a request's own items, and the rules in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import TokenAgreement
from statewise.model.spec import MixtureHead
from statewise.rules.mixture import log_density
from statewise.rules.sampling import Uniforms, log_softmax
from statewise_export.certify.served.run import Served, prefill_chunk
from statewise_export.certify.steps.near_ties import is_near_tie
from statewise_export.certify.tolerances import for_scores
from statewise_export.certify.trial import BATCH_SIZES, Trial
from statewise_training.reference.decoding import next_item

Array = NDArray[Any]

CLOSE = 1e-3
"""Nats. A variant that is held against itself is computed as the engine does, but for single roundings that turn."""
SHARE_CLOSE = 0.9
"""Share of its log-probabilities that must be that close; the others lie within the variant's tolerances."""


@dataclass(frozen=True)
class Judged:
    """A served request beside the outputs that its items should have been chosen from."""

    served: Served
    outputs: NDArray[np.float32]
    """`[item, output_size]`."""


def judge(trial: Trial, every: Iterable[Served]) -> list[Judged]:
    """Compute the reference's outputs behind every served request, at most a batch at a time."""
    every, size = list(every), max(BATCH_SIZES)
    return [judged for start in range(0, len(every), size) for judged in _judge(trial, every[start : start + size])]


def _judge(trial: Trial, batch: Sequence[Served]) -> list[Judged]:
    sources = None
    if trial.spec.source is not None:
        sources = [served.request.source for served in batch if served.request.source is not None]
    if trial.is_exact:
        every = trial.pytorch.outputs([served.read for served in batch], sources)
        outputs = [row[len(served.request.prompt) - 1 :] for served, row in zip(batch, every, strict=True)]
    else:
        prompts, items = [served.request.prompt for served in batch], [served.items for served in batch]
        outputs = trial.itself.outputs_behind(prompts, items, sources, prefill_chunk(trial))
    return list(map(Judged, batch, outputs))


def agreement_of_tokens(trial: Trial, every: Iterable[Judged]) -> TokenAgreement:
    """Every token against the choice of the rules in NumPy, behind the tokens before it."""
    compared = equal = near_ties = 0
    for judged in every:
        request, items = judged.served.request, judged.served.items
        uniforms = Uniforms(request.sampling.seed or 0)
        for at, output in enumerate(judged.outputs):
            before = items[:at]
            uniform = uniforms.take(at, 1)[0]
            expected = next_item(trial.spec.head, output, request.sampling, request.prompt, list(before), uniform)
            near_tie = trial.tolerances.near_tie + trial.tolerances.of_largest * float(np.abs(output).max())
            is_equal = int(items[at]) == int(expected)
            is_tie = not is_equal and is_near_tie(
                output, request.sampling, request.prompt, before, int(items[at]), near_tie
            )
            compared, equal, near_ties = compared + 1, equal + is_equal, near_ties + is_tie
    return TokenAgreement(compared=compared, equal=equal, near_ties=near_ties)


def expected_log_probabilities(trial: Trial, judged: Judged) -> Array:
    """Log-probabilities of the served items by the reference's outputs, `[item]`."""
    head = trial.spec.head
    if isinstance(head, MixtureHead):
        return log_density(judged.outputs, judged.served.items, head)
    every = log_softmax(judged.outputs.astype(np.float64))
    return np.asarray(every[np.arange(len(every)), judged.served.items])


@dataclass
class Errors:
    """Errors of log-probabilities, in nats, and how many lie beyond their tolerance."""

    largest: float = 0.0
    num_compared: int = 0
    num_beyond: int = 0
    num_far: int = 0
    """Beyond CLOSE."""

    def add(self, actual: Array, expected: Array, allowed: Array | float) -> None:
        """Compare `[...]` values."""
        error = np.abs(np.asarray(actual, np.float64) - expected)
        self.largest = float(np.maximum(self.largest, error.max(initial=0.0)))
        self.num_compared += error.size
        # Written so that NaN, which compares false with everything, is beyond.
        self.num_beyond += error.size - int((error <= allowed).sum())
        self.num_far += error.size - int((error <= CLOSE).sum())

    def passed(self, trial: Trial) -> bool:
        """Whether all of them are as close as they must be."""
        is_close = trial.is_exact or self.num_far <= (1 - SHARE_CLOSE) * self.num_compared
        return self.num_beyond == 0 and is_close

    def __str__(self) -> str:
        """The figure of a report."""
        beyond = f", {self.num_beyond} beyond the tolerance" if self.num_beyond else ""
        return f"max error {self.largest:.2e} nats in {self.num_compared}{beyond}"


def allowed_error(trial: Trial, judged: Judged) -> Array:
    """Tolerance of each log-probability of a served request, `[item]`."""
    tolerances, outputs = trial.tolerances, judged.outputs
    if not trial.is_exact:
        unit = float(np.max(trial.units))
        return np.full(len(outputs), 2 * tolerances.absolute * unit)
    if isinstance(trial.spec.head, MixtureHead):
        # A last output that nothing follows is added, as the tolerances of whole sequences want one.
        items = np.concatenate([judged.served.items[:1], judged.served.items])
        tolerances = for_scores(tolerances, trial.spec.head, np.concatenate([outputs, outputs[-1:]]), items)
    else:
        tolerances = for_scores(tolerances, trial.spec.head, outputs, judged.served.items)
    return tolerances.absolute + tolerances.relative * np.abs(expected_log_probabilities(trial, judged))
