"""Divergence of a variant of lower precision from PyTorch in float32, on text or series that neither has seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import DensityDivergence, TokenDivergence, ValueDivergence
from statewise.model.spec import MixtureHead, TokenInput
from statewise.rules import mixture
from statewise.rules.sampling import GREEDY
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.figures import describe_divergence
from statewise_export.certify.inputs import DATA_SEED, HeldOut, Scale, held_out_rows
from statewise_export.certify.trial import Trial
from statewise_training.reference.decoding import ReferenceDecoder

Array = NDArray[Any]

MAX_NUMBERS = 2**26
"""Outputs that are held at once: 256 MiB."""
NUM_PROMPTS = 8
PROMPT_LENGTH = 16
NUM_GENERATED = 64


def _run(trial: Trial) -> list[Outcome]:
    assert trial.limits is not None
    start = trial.bundle.manifest.special_tokens.start
    rows = held_out_rows(trial.held_out, trial.pytorch, trial.scale, start)
    found = measure_divergence(trial.decoder, trial.pytorch, rows, trial.scale)
    figure = describe_divergence(found, trial.limits)
    outcomes = [Outcome("divergence from float32", found.within(trial.limits), figure, figures={"divergence": found})]
    if isinstance(found, TokenDivergence):
        # Reported, and bounded by nothing: at a near tie any change turns the choice, and greedy runs part for good.
        figure = (
            f"{found.equal_greedy:.1%} position by position; the first {found.common_prefix:.0f} "
            f"of {found.num_generated} in a row"
        )
        outcomes.append(Outcome("greedy tokens as in float32", True, figure))
    return outcomes


def measure_divergence(
    decoder: RuntimeDecoder, reference: ReferenceDecoder, held_out: HeldOut, scale: Scale
) -> TokenDivergence | DensityDivergence | ValueDivergence:
    """Feed the same rows to both, and compare what they expect at each position."""
    if isinstance(reference.spec.input, TokenInput):
        return _of_tokens(decoder, reference, held_out)
    if isinstance(reference.spec.head, MixtureHead):
        return _of_densities(decoder, reference, reference.spec.head, held_out)
    differences = [
        np.abs(actual - expected) / np.asarray(scale.deviation)
        for _, actual, expected in _outputs(decoder, reference, held_out)
    ]
    return ValueDivergence(
        held_out=held_out.source,
        num_items=sum(map(len, held_out.rows)),
        mean_difference=float(np.concatenate(differences).mean()),
        max_difference=float(np.concatenate(differences).max()),
    )


def _outputs(
    decoder: RuntimeDecoder, reference: ReferenceDecoder, held_out: HeldOut
) -> Iterator[tuple[Array, NDArray[np.float64], NDArray[np.float64]]]:
    """For each row: its items, the variant's outputs and PyTorch's, `[time, size]`."""
    fitting = MAX_NUMBERS // (max(map(len, held_out.rows)) * reference.spec.head.output_size)
    step = min(max(1, fitting), decoder.runner.pool.num_rows)
    for start in range(0, len(held_out.rows), step):
        part = held_out.rows[start : start + step]
        sources = held_out.sources and held_out.sources[start : start + step]
        # One item at a time, as in decoding; the last of each chunk is the only one that gives an output.
        actual = decoder.prefill(part, [GREEDY] * len(part), 1, sources).outputs
        for items, row, expected in zip(part, actual, reference.outputs(part, sources), strict=True):
            stacked = np.stack([row[position] for position in range(len(items))])
            yield items, stacked.astype(np.float64), expected.astype(np.float64)


def _of_tokens(decoder: RuntimeDecoder, reference: ReferenceDecoder, held_out: HeldOut) -> TokenDivergence:
    surprises, surprises_float32, divergences, equal = [], [], [], []
    for items, actual, expected in _outputs(decoder, reference, held_out):
        log_q, log_p = _log_softmax(actual), _log_softmax(expected)
        # The last output predicts an item that is not there.
        index = np.arange(len(items) - 1), items[1:]
        surprises.append(-log_q[index])
        surprises_float32.append(-log_p[index])
        divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        equal.append(log_q.argmax(axis=1) == log_p.argmax(axis=1))
    common, num_generated = _common_prefix(decoder, reference, held_out)
    return TokenDivergence(
        held_out=held_out.source,
        num_tokens=sum(map(len, held_out.rows)),
        perplexity_float32=float(np.exp(np.concatenate(surprises_float32).mean())),
        perplexity=float(np.exp(np.concatenate(surprises).mean())),
        kl_divergence=float(np.concatenate(divergences).mean()),
        equal_greedy=float(np.concatenate(equal).mean()),
        common_prefix=common,
        num_generated=num_generated,
    )


def _of_densities(
    decoder: RuntimeDecoder, reference: ReferenceDecoder, head: MixtureHead, held_out: HeldOut
) -> DensityDivergence:
    losses, losses_float32, divergences = [], [], []
    for row, (items, actual, expected) in enumerate(_outputs(decoder, reference, held_out)):
        losses.append(-mixture.log_density(actual[:-1], items[1:], head))
        losses_float32.append(-mixture.log_density(expected[:-1], items[1:], head))
        # Between mixtures it has no closed form: the mean over vectors that float32 draws is an estimate without bias.
        drawn = mixture.choose(expected, head, 1.0, mixture.noise_of(head, DATA_SEED + row).take(0, len(items)))
        densities = (mixture.log_density(output, drawn, head) for output in (expected, actual))
        divergences.append(np.subtract(*densities))
    return DensityDivergence(
        held_out=held_out.source,
        num_items=sum(map(len, held_out.rows)),
        negative_log_likelihood_float32=float(np.mean(losses_float32)),
        negative_log_likelihood=float(np.mean(losses)),
        kl_divergence=float(np.mean(divergences)),
    )


def _common_prefix(decoder: RuntimeDecoder, reference: ReferenceDecoder, held_out: HeldOut) -> tuple[float, int]:
    """Greedy tokens until the two part, mean over prompts, and how many were made."""
    prompts = [row[: max(1, min(PROMPT_LENGTH, len(row) // 2))] for row in held_out.rows[:NUM_PROMPTS]]
    sources = held_out.sources and held_out.sources[:NUM_PROMPTS]
    params = [GREEDY] * len(prompts)
    limit = reference.spec.max_positions
    count = NUM_GENERATED if limit is None else min(NUM_GENERATED, limit - max(map(len, prompts)))
    actual, _ = decoder.generate(prompts, params, count, sources)
    expected, _ = reference.generate(prompts, params, count, sources)
    # The first difference; `count` where there is none.
    same = [np.append(a != e, True).argmax() for a, e in zip(actual, expected, strict=True)]
    return float(np.mean(same)), count


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


DIVERGENCE = Check("divergence from float32", lambda trial: trial.spec.generates and not trial.is_exact, _run)
