"""Streams of the real engine: rows that join, move and leave, prefixes that are reused, seeds, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from statewise.bundles.figures import TokenAgreement
from statewise.errors import StatewiseError
from statewise.model.spec import MixtureHead, TokenInput
from statewise.rules.sampling import log_softmax
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.figures import describe_tokens
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.served.beams import beam_outcomes
from statewise_export.certify.served.oracle import (
    Errors,
    Judged,
    agreement_of_tokens,
    allowed_error,
    expected_log_probabilities,
    judge,
)
from statewise_export.certify.served.requests import first_requests, later_requests
from statewise_export.certify.served.run import running_engine, serve
from statewise_export.certify.served.stops import stop_outcomes
from statewise_export.certify.served.text import text_outcomes
from statewise_export.certify.steps.drawn_vectors import compare_drawn
from statewise_export.certify.steps.tokens import add
from statewise_export.certify.tolerances import agree
from statewise_export.certify.trial import Trial


def _run(trial: Trial) -> list[Outcome]:
    try:
        return _compare(trial)
    except StatewiseError as error:
        return [Outcome("served: every request is answered", False, str(error))]


def _compare(trial: Trial) -> list[Outcome]:
    with running_engine(trial) as engine:
        first = serve(engine, first_requests(trial))
        later = serve(engine, later_requests(trial, first))
        judged = judge(trial, [*first, *later])
        outcomes = [*_item_outcomes(trial, judged), *_log_probability_outcomes(trial, judged)]
        outcomes.append(_lengths(judged))
        if isinstance(trial.spec.input, TokenInput):
            outcomes += text_outcomes(trial, [*first, *later])
            outcomes += stop_outcomes(trial, engine, first)
            outcomes += beam_outcomes(trial, engine, first[0].request)
    return outcomes


def _item_outcomes(trial: Trial, judged: Sequence[Judged]) -> list[Outcome]:
    """The items of requests that began behind a saved prefix, and those of all others."""
    reused = [one for one in judged if one.served.expected_cached != 0]
    others = [one for one in judged if one.served.expected_cached == 0]
    outcomes = []
    if others:
        passed, figure = _compare_items(trial, others)
        outcomes.append(Outcome("served: items by the rules and the seed", passed, figure))
    if reused:
        passed, figure = _compare_items(trial, reused)
        errors = _errors(trial, reused)
        figure = f"{figure}; {errors}" if errors.num_compared else figure
        outcomes.append(Outcome("served: items behind a reused prefix", passed and errors.passed(trial), figure))
    wrong = [
        f"{one.served.num_cached} of {len(one.served.request.prompt)} prompt items, expected {expected}"
        for one in judged
        if (expected := one.served.expected_cached) is not None and one.served.num_cached != expected
    ]
    figure = f"reused {wrong[0]}" if wrong else f"as expected for {len(judged)} requests"
    return [*outcomes, Outcome("served: length of the reused prefix", not wrong, figure)]


def _compare_items(trial: Trial, judged: Sequence[Judged]) -> tuple[bool, str]:
    if isinstance(trial.spec.input, TokenInput):
        tokens = agreement_of_tokens(trial, judged)
        return tokens.all_equal, describe_tokens(tokens)
    if isinstance(trial.spec.head, MixtureHead):
        tokens = _compare_vectors(trial, judged)
        return tokens.all_equal, describe_tokens(tokens)
    pairs = [(one.served.items / trial.units, one.outputs / trial.units) for one in judged]
    error = max(float(np.abs(actual - expected).max()) for actual, expected in pairs)
    passed = all(agree(actual, expected, trial.tolerances) for actual, expected in pairs)
    return passed, f"max error {error:.2e} in {sum(len(actual) for actual, _ in pairs)} vectors"


def _compare_vectors(trial: Trial, judged: Sequence[Judged]) -> TokenAgreement:
    agreements = []
    for one in judged:
        request = one.served.request
        sources = None if request.source is None else [request.source]
        prompts = Prompts([request.prompt], sources)
        agreements.append(compare_drawn(trial, prompts, [request.sampling], [one.served.items]))
    return reduce(add, agreements)


def _errors(trial: Trial, judged: Sequence[Judged]) -> Errors:
    errors = Errors()
    for one in judged:
        given = [entry.log_probability for entry in one.served.answer.log_probabilities]
        if one.served.request.log_probabilities >= 0 and len(given) == len(one.outputs):
            errors.add(np.array(given), expected_log_probabilities(trial, one), allowed_error(trial, one))
    return errors


def _log_probability_outcomes(trial: Trial, judged: Sequence[Judged]) -> list[Outcome]:
    asked = [one for one in judged if one.served.request.log_probabilities >= 0]
    if not asked:
        return []
    errors = _errors(trial, asked)
    missing = sum(len(one.served.answer.log_probabilities) != len(one.outputs) for one in asked)
    figure = f"missing in {missing} answers" if missing else str(errors)
    outcomes = [Outcome("served: log-probabilities", not missing and errors.passed(trial), figure)]
    if isinstance(trial.spec.input, TokenInput):
        outcomes.append(_top_tokens(trial, asked))
    return outcomes


def _top_tokens(trial: Trial, judged: Sequence[Judged]) -> Outcome:
    """The tokens listed are those with the largest log-probabilities, in order, each with its own."""
    errors, ranks, wrong = Errors(), Errors(), []
    for one in judged:
        every = log_softmax(one.outputs.astype(np.float64))
        allowed = allowed_error(trial, one)
        count = min(one.served.request.log_probabilities, every.shape[1])
        for at, entry in enumerate(one.served.answer.log_probabilities[: len(every)]):
            tokens = [token for token, _ in entry.top]
            inside = all(0 <= token < every.shape[1] for token in tokens)
            if entry.token != one.served.items[at] or len(set(tokens)) != count or len(tokens) != count or not inside:
                wrong.append(f"item {at} is token {one.served.items[at]}, reported {entry.token} with {tokens}")
                continue
            given = np.array([log_probability for _, log_probability in entry.top])
            errors.add(given, every[at, tokens], allowed[at])
            ranks.add(given, np.sort(every[at])[::-1][:count], allowed[at])
    passed = not wrong and errors.passed(trial) and ranks.passed(trial)
    return Outcome("served: top tokens", passed, wrong[0] if wrong else str(errors))


def _lengths(judged: Sequence[Judged]) -> Outcome:
    """Without an end token every request gets just as many items as it asked for, and ends by length."""
    wrong = [
        f"{len(answer.items)} items of {request.max_tokens}, finish reason {answer.finish_reason}"
        for request, answer in ((one.served.request, one.served.answer) for one in judged)
        if len(answer.items) != request.max_tokens or answer.finish_reason != "length"
    ]
    return Outcome("served: lengths and finish reasons", not wrong, wrong[0] if wrong else f"{len(judged)} as asked")


SERVED = Check("requests to the engine", lambda trial: trial.spec.generates, _run)
