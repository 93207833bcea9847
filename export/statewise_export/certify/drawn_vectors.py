"""Vectors that the graphs have drawn, against statewise.rules.mixture's rules applied to the reference's outputs.

The reference reads the vectors that the graphs drew, so that rounding does not grow from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.certificate import TokenAgreement, Tolerances
from statewise.model.spec import MixtureHead
from statewise.rules import mixture
from statewise.rules.mixture import Mixture
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.self_reference import SelfReference
from statewise_training.reference.decoding import ReferenceDecoder

Array = NDArray[Any]

SAMPLED = (
    SamplingParams(seed=1),
    GREEDY,
    SamplingParams(seed=2, temperature=0.5),
    SamplingParams(seed=3, temperature=2.0),
    SamplingParams(seed=2**63 + 4, temperature=0.1),
)
NUM_DRAWN = 64


def compare_drawn(
    decoder: RuntimeDecoder,
    reference: ReferenceDecoder | SelfReference,
    prompts: Prompts,
    num_items: int,
    steps_per_run: Sequence[int],
    tolerances: Tolerances,
    deviation: Array,
) -> TokenAgreement:
    """Draw after every prompt, with one setting after another; `deviation`: of each feature, the unit of errors."""
    head = reference.spec.head
    assert isinstance(head, MixtureHead)
    params = [SAMPLED[row % len(SAMPLED)] for row in range(len(prompts))]
    drawn, _ = decoder.generate(
        prompts.items, params, num_items, prompts.sources, chunk=64, steps_per_run=steps_per_run
    )
    read = [np.concatenate([prompt, own[:-1]]) for prompt, own in zip(prompts.items, drawn, strict=True)]
    equal = near_ties = 0
    for row, outputs in enumerate(reference.outputs(read, prompts.sources)):
        p, output = params[row], outputs[-num_items:].astype(np.float64)
        noise = mixture.noise_of(head, p.seed or 0).take(0, num_items)
        fits = _fits(drawn[row], output, head, p.temperature, noise, tolerances, deviation)
        is_chosen, may_be = _components(output, head, p.temperature, noise, tolerances)
        is_equal = (fits & is_chosen).any(axis=1)
        equal += int(is_equal.sum())
        near_ties += int(((fits & may_be).any(axis=1) & ~is_equal).sum())
    return TokenAgreement(compared=num_items * len(prompts), equal=equal, near_ties=near_ties)


def _fits(
    drawn: Array,
    output: Array,
    head: MixtureHead,
    temperature: float,
    noise: Array,
    tolerances: Tolerances,
    deviation: Array,
) -> NDArray[np.bool_]:
    """Of which components a vector can be, within the tolerance of the outputs: bool `[item, component]`."""
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
