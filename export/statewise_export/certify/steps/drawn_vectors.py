"""Vectors drawn by the graphs against the rules of statewise.rules.mixture, applied to the reference's outputs.

The reference reads the vectors that the graphs drew, so that rounding does not grow from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import TokenAgreement, Tolerances
from statewise.model.spec import MixtureHead
from statewise.rules import mixture
from statewise.rules.mixture import Mixture
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.figures import describe_tokens
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.trial import Trial

Array = NDArray[Any]

SAMPLED = (
    SamplingParams(seed=1),
    GREEDY,
    SamplingParams(seed=2, temperature=0.5),
    SamplingParams(seed=3, temperature=2.0),
    SamplingParams(seed=2**63 + 4, temperature=0.1),
)
NUM_DRAWN = 64
STEPS_PER_RUN = (1, 5, 16, 2)


def _run(trial: Trial) -> list[Outcome]:
    prompts = trial.prompts
    count = min(NUM_DRAWN, trial.position_limit - max(map(len, prompts.items)))
    params = [SAMPLED[row % len(SAMPLED)] for row in range(len(prompts))]
    drawn, _ = trial.decoder.generate(
        prompts.items, params, count, prompts.sources, chunk=64, steps_per_run=STEPS_PER_RUN
    )
    found = compare_drawn(trial, prompts, params, drawn)
    return [Outcome("sampled vectors", found.all_equal, describe_tokens(found), figures={"sampled_vectors": found})]


def compare_drawn(
    trial: Trial, prompts: Prompts, params: Sequence[SamplingParams], drawn: Sequence[Array]
) -> TokenAgreement:
    """Compare the vectors drawn behind each prompt, `[item, features]`, with the rules' choices."""
    head = trial.spec.head
    assert isinstance(head, MixtureHead)
    read = [np.concatenate([prompt, own[:-1]]) for prompt, own in zip(prompts.items, drawn, strict=True)]
    equal = near_ties = 0
    for row, outputs in enumerate(trial.reference.outputs(read, prompts.sources)):
        num_items, p = len(drawn[row]), params[row]
        output = outputs[-num_items:].astype(np.float64)
        noise = mixture.noise_of(head, p.seed or 0).take(0, num_items)
        deviation = np.broadcast_to(np.asarray(trial.scale.deviation, np.float64), head.features)
        fits = _fits(drawn[row], output, head, p.temperature, noise, trial.tolerances, deviation)
        is_chosen, may_be = _components(output, head, p.temperature, noise, trial.tolerances)
        is_equal = (fits & is_chosen).any(axis=1)
        equal += int(is_equal.sum())
        near_ties += int(((fits & may_be).any(axis=1) & ~is_equal).sum())
    return TokenAgreement(compared=sum(map(len, drawn)), equal=equal, near_ties=near_ties)


def _fits(
    drawn: Array,
    output: Array,
    head: MixtureHead,
    temperature: float,
    noise: Array,
    tolerances: Tolerances,
    deviation: Array,
) -> NDArray[np.bool_]:
    """Whether a vector may come from each component, within the tolerance of the outputs: bool `[item, component]`."""
    parts = Mixture.of(output, head)
    expected = mixture.draw_each(output, head, temperature, noise)
    # An error of the parameters goes through mean + sqrt(T) L z; that of a logarithm is relative to its exponential.
    slope = 1 + np.abs(parts.log_diagonal).max()
    lever = 1 + np.abs(parts.factors()) / deviation[:, None]
    spread = np.sqrt(temperature) * slope * (lever @ np.abs(noise[:, None, 1:, None]))[..., 0]
    absolute = tolerances.absolute + tolerances.of_largest * np.abs(output).max(axis=-1)[:, None, None]
    allowed = absolute * (1 + spread) + tolerances.relative * (np.abs(parts.means) + np.abs(expected)) / deviation
    fits: NDArray[np.bool_] = (np.abs(drawn[:, None] - expected) / deviation <= allowed).all(axis=-1)
    return fits


def _components(
    output: Array, head: MixtureHead, temperature: float, noise: Array, tolerances: Tolerances
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The component that is chosen, and those that are chosen within a near tie: bool `[item, component]`."""
    logits = Mixture.of(output, head).logits
    tie = tolerances.near_tie + tolerances.of_largest * np.abs(output).max(axis=-1, keepdims=True)
    if temperature == 0.0:
        largest = logits.max(axis=-1, keepdims=True)
        chosen = np.arange(head.components) == logits.argmax(axis=-1)[:, None]
        return chosen, logits >= largest - tie
    ends = np.cumsum(mixture.weights(logits, temperature), axis=-1)
    starts = ends - mixture.weights(logits, temperature)
    uniform = noise[:, :1]
    return (starts <= uniform) & (uniform < ends), (starts - tie <= uniform) & (uniform <= ends + tie)


SAMPLED_VECTORS = Check("sampled vectors", lambda trial: isinstance(trial.spec.head, MixtureHead), _run)
