"""The requests of a certificate: prompts that share beginnings, every sampling rule, lengths that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import MixtureHead, TokenInput
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.inputs import random_items, random_sources
from statewise_export.certify.served.run import Served, prefill_chunk
from statewise_export.certify.steps.tokens import within_vocabulary
from statewise_export.certify.trial import Trial
from statewise_server.engine import GenerationRequest

Array = NDArray[Any]

NUM_SHARED = 3
"""Prompts whose beginnings later requests share; with several a wrong one of them is noticed."""
MAX_TOKENS = 24
NUM_TOP = 3
LEAST_CHUNK = 8
"""Random prompts may share shorter beginnings by chance."""

TOKEN_RULES = (
    SamplingParams(seed=21, temperature=1.5),
    SamplingParams(seed=22, temperature=2.0, top_k=20),
    GREEDY,
    SamplingParams(seed=23, temperature=1.5, top_p=0.9),
    SamplingParams(seed=24, temperature=1.2, min_p=0.05),
    SamplingParams(seed=25, temperature=0.9, repetition_penalty=1.3, presence_penalty=0.6, frequency_penalty=0.7),
    SamplingParams(seed=26, temperature=0.0, frequency_penalty=1.5, logit_bias={1: 3.0}),
    SamplingParams(seed=2**63 + 27),
)
VECTOR_RULES = (SamplingParams(seed=21), GREEDY, SamplingParams(seed=22, temperature=0.5), SamplingParams(seed=23))


def first_requests(trial: Trial) -> list[Served]:
    """Requests whose prompts the engine has not seen."""
    limit, chunk = trial.position_limit, prefill_chunk(trial)
    length = max(1, min(2 * chunk + 1, limit - 2))
    prompts = random_items(trial.spec, [length] * NUM_SHARED, trial.scale)
    return [_request(trial, row, prompt, MAX_TOKENS) for row, prompt in enumerate(prompts)]


def later_requests(trial: Trial, first: Sequence[Served]) -> list[Served]:
    """Requests that begin as the first ones did, and others of all lengths among them."""
    limit, chunk = trial.position_limit, prefill_chunk(trial)
    lengths = [min(length, max(1, limit // 2)) for length in (1, 2, 3, chunk + 1, 2, 1)]
    others = random_items(trial.spec, [*lengths, *(1 for _ in first)], trial.scale)
    sharing: list[tuple[Array, int | None]] = []
    for served, last in zip(first, others[len(lengths) :], strict=True):
        prompt = np.concatenate([served.request.prompt[:-1], last])
        num_shared = 0 if trial.spec.source is not None else (len(prompt) - 1) // chunk * chunk
        sharing.append((prompt, num_shared if chunk >= LEAST_CHUNK else None))
    every: list[tuple[Array, int | None]]
    every = [(prompt, 0 if chunk >= LEAST_CHUNK else None) for prompt in others[: len(lengths)]]
    # In turns, so that both kinds join while others leave.
    for place, pair in enumerate(sharing):
        every.insert(2 * place, pair)
    requests = []
    for row, (prompt, cached) in enumerate(every):
        served = _request(trial, NUM_SHARED + row, prompt, 3 + 5 * row % MAX_TOKENS)
        requests.append(replace(served, expected_cached=cached))
    return requests


def _request(trial: Trial, index: int, prompt: Array, max_tokens: int) -> Served:
    spec = trial.spec
    reads_tokens = isinstance(spec.input, TokenInput)
    rules = TOKEN_RULES if reads_tokens else VECTOR_RULES if isinstance(spec.head, MixtureHead) else (GREEDY,)
    params = rules[index % len(rules)]
    has_probabilities = reads_tokens or isinstance(spec.head, MixtureHead)
    sources = random_sources(spec, [3 + 5 * index])
    return Served(
        GenerationRequest(
            prompt,
            within_vocabulary(params, spec) if reads_tokens else params,
            max(1, min(max_tokens, trial.position_limit - len(prompt))),
            log_probabilities=(NUM_TOP if reads_tokens else 0) if has_probabilities else -1,
            source=sources[0] if sources else None,
        )
    )
