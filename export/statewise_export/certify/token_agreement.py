"""How many tokens a runtime chooses as the reference does, and which of the others were all but tied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from statewise.bundles.certificate import TokenAgreement, Tolerances
from statewise.model.spec import ModelSpec, TokenInput
from statewise.rules.sampling import SamplingParams
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.near_ties import is_near_tie
from statewise_export.certify.self_reference import SelfReference
from statewise_training.reference.decoding import ReferenceDecoder

NUM_GENERATED = 200


def compare_tokens(
    decoder: RuntimeDecoder,
    reference: ReferenceDecoder | SelfReference,
    prompts: Prompts,
    params: Sequence[SamplingParams],
    limit: int,
    steps_per_run: tuple[int, ...],
    tolerances: Tolerances,
) -> TokenAgreement:
    """Generate behind every prompt, one of `params` for each row, at most to position `limit`."""
    prompts = prompts.take(row % len(prompts) for row in range(len(params)))
    params = [_within_vocabulary(p, reference.spec) for p in params]
    count = min(NUM_GENERATED, limit - max(map(len, prompts.items)))
    actual, _ = decoder.generate(prompts.items, params, count, prompts.sources, chunk=64, steps_per_run=steps_per_run)
    expected, logits = reference.generate(prompts.items, params, count, prompts.sources)
    agreement = TokenAgreement(compared=0, equal=0)
    for row, p in enumerate(params):
        differing = np.flatnonzero(actual[row] != expected[row])
        if not len(differing):
            agreement = add(agreement, TokenAgreement(compared=count, equal=count))
            continue
        # From the first difference on the rows read different items, so nothing after it can be compared.
        at = int(differing[0])
        near_tie = tolerances.near_tie + tolerances.of_largest * float(np.abs(logits[row][at]).max())
        tie = is_near_tie(logits[row][at], p, prompts.items[row], expected[row][:at], int(actual[row][at]), near_tie)
        agreement = add(agreement, TokenAgreement(compared=at + 1, equal=at, near_ties=int(tie)))
    return agreement


def _within_vocabulary(params: SamplingParams, spec: ModelSpec) -> SamplingParams:
    assert isinstance(spec.input, TokenInput)
    size = spec.input.vocabulary_size
    return replace(params, logit_bias={token: bias for token, bias in params.logit_bias.items() if token < size})


def add(one: TokenAgreement, other: TokenAgreement) -> TokenAgreement:
    """Both together."""
    return TokenAgreement(
        compared=one.compared + other.compared,
        equal=one.equal + other.equal,
        near_ties=one.near_ties + other.near_ties,
    )
