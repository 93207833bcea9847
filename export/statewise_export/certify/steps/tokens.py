"""Greedy and sampled tokens against the reference's; tokens that differ within a near tie are counted apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from statewise.bundles.figures import TokenAgreement
from statewise.model.spec import ModelSpec, TokenInput
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.figures import describe_tokens
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.steps.near_ties import is_near_tie
from statewise_export.certify.trial import NUM_GENERATED, Trial

STEPS_PER_RUN = (1, 5, 16, 2)
SAMPLED = (
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.8, top_k=20),
    SamplingParams(seed=3, temperature=1.3, top_p=0.9),
    SamplingParams(seed=4, temperature=0.7, min_p=0.05),
    SamplingParams(seed=5, temperature=1.5, top_k=50, top_p=0.95, min_p=0.02),
    SamplingParams(seed=2**63 + 6, top_p=0.5, logit_bias={0: -100.0, 1: 2.5}),
    SamplingParams(seed=7, temperature=0.0, logit_bias={1: -5.0}),
)
PENALIZED = (
    SamplingParams(seed=8, repetition_penalty=1.3),
    SamplingParams(seed=9, temperature=0.9, presence_penalty=0.6, frequency_penalty=0.3),
    SamplingParams(seed=10, temperature=0.0, repetition_penalty=1.1, frequency_penalty=1.0, logit_bias={1: 3.0}),
)
"""Apart from the others: penalties need each token before the next, so that one run makes one."""


def _run_greedy(trial: Trial) -> list[Outcome]:
    greedy = compare_tokens(trial, trial.prompts, [GREEDY] * len(trial.prompts), STEPS_PER_RUN)
    return [Outcome("greedy tokens", greedy.all_equal, describe_tokens(greedy), figures={"greedy_tokens": greedy})]


def _run_sampled(trial: Trial) -> list[Outcome]:
    last = trial.prompts.take(range(len(trial.prompts))[-3:])
    sampled = add(
        compare_tokens(trial, trial.prompts, SAMPLED, STEPS_PER_RUN), compare_tokens(trial, last, PENALIZED, (1,))
    )
    return [Outcome("sampled tokens", sampled.all_equal, describe_tokens(sampled), figures={"sampled_tokens": sampled})]


def compare_tokens(
    trial: Trial, prompts: Prompts, params: Sequence[SamplingParams], steps_per_run: tuple[int, ...]
) -> TokenAgreement:
    """Generate behind every prompt, one of `params` for each row."""
    prompts = prompts.take(row % len(prompts) for row in range(len(params)))
    params = [within_vocabulary(p, trial.spec) for p in params]
    count = min(NUM_GENERATED, trial.position_limit - max(map(len, prompts.items)))
    actual, _ = trial.decoder.generate(
        prompts.items, params, count, prompts.sources, chunk=64, steps_per_run=steps_per_run
    )
    expected, logits = trial.reference.generate(prompts.items, params, count, prompts.sources)
    agreement = TokenAgreement(compared=0, equal=0)
    for row, p in enumerate(params):
        differing = np.flatnonzero(actual[row] != expected[row])
        if not len(differing):
            agreement = add(agreement, TokenAgreement(compared=count, equal=count))
            continue
        # From the first difference on the rows read different items, so nothing after it can be compared.
        at = int(differing[0])
        near_tie = trial.tolerances.near_tie + trial.tolerances.of_largest * float(np.abs(logits[row][at]).max())
        tie = is_near_tie(logits[row][at], p, prompts.items[row], expected[row][:at], int(actual[row][at]), near_tie)
        agreement = add(agreement, TokenAgreement(compared=at + 1, equal=at, near_ties=int(tie)))
    return agreement


def within_vocabulary(params: SamplingParams, spec: ModelSpec) -> SamplingParams:
    """The parameters without biases of tokens that the model does not have."""
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


def _reads_tokens(trial: Trial) -> bool:
    return trial.spec.generates and isinstance(trial.spec.input, TokenInput)


GREEDY_TOKENS = Check("greedy tokens", _reads_tokens, _run_greedy)
SAMPLED_TOKENS = Check("sampled tokens", _reads_tokens, _run_sampled)
