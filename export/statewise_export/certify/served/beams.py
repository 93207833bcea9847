"""Hypotheses of a served beam search: their log-probabilities, scores, order and text."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from statewise.rules.sampling import GREEDY
from statewise_export.certify.check import Outcome
from statewise_export.certify.served.oracle import Errors, allowed_error, expected_log_probabilities, judge
from statewise_export.certify.served.run import MAX_ROWS, Served, serve
from statewise_export.certify.served.text import decode, same_text, tokenizer_of
from statewise_export.certify.trial import Trial
from statewise_server.engine import Delta, Engine, GenerationRequest
from statewise_server.engine.request import BeamParams

BEAMS = BeamParams(num_beams=3, length_penalty=0.7, num_hypotheses=2)
MAX_TOKENS = 6


def beam_outcomes(trial: Trial, engine: Engine, request: GenerationRequest) -> list[Outcome]:
    """Search behind a prompt; none where the vocabulary is too small for it."""
    assert BEAMS.num_beams <= MAX_ROWS
    ends = trial.bundle.manifest.special_tokens.ends
    if trial.spec.head.output_size <= (1 + len(ends)) * BEAMS.num_beams:
        return []
    searched = replace(
        request,
        sampling=replace(GREEDY, seed=0),
        beam_search=BEAMS,
        log_probabilities=-1,
        end_tokens=ends,
        max_tokens=min(MAX_TOKENS, request.max_tokens),
    )
    (served,) = serve(engine, [Served(searched)])
    found = served.answer.hypotheses
    wrong = _problems(trial, searched, served)
    errors, scores = Errors(), Errors()
    for judged, hypothesis in zip(
        judge(trial, [Served(searched, Delta(list(h.tokens))) for h in found]), found, strict=True
    ):
        allowed = float(allowed_error(trial, judged).sum())
        expected = float(expected_log_probabilities(trial, judged).sum())
        errors.add(np.array(hypothesis.log_probability), np.array(expected), allowed)
        score = hypothesis.log_probability / math.pow(len(hypothesis.tokens), BEAMS.length_penalty)
        scores.add(np.array(hypothesis.score), np.array(score), 1e-5 * max(1.0, abs(score)))
    if scores.num_beyond:
        wrong.append("a score is not log-probability / length ^ length_penalty")
    passed = not wrong and errors.num_beyond == 0
    return [Outcome("served: beam search", passed, wrong[0] if wrong else str(errors))]


def _problems(trial: Trial, request: GenerationRequest, served: Served) -> list[str]:
    found, tokenizer = served.answer.hypotheses, tokenizer_of(trial)
    wrong = []
    if len(found) != BEAMS.num_hypotheses:
        wrong.append(f"{len(found)} hypotheses, expected {BEAMS.num_hypotheses}")
    if [h.score for h in found] != sorted((h.score for h in found), reverse=True):
        wrong.append("hypotheses are not in the order of their scores")
    if found and served.answer.items != found[0].tokens:
        wrong.append(f"the answer {served.answer.items} is not the best hypothesis {found[0].tokens}")
    for hypothesis in found:
        tokens, ends = hypothesis.tokens, request.end_tokens
        reason = "stop" if tokens[-1] in ends else "length"
        if hypothesis.finish_reason != reason or ends & set(tokens[:-1]):
            wrong.append(f"finish reason {hypothesis.finish_reason} of {tokens}, end tokens {set(ends)}")
        if tokenizer is not None and not same_text(tokenizer, hypothesis.text, decode(tokenizer, tokens)):
            wrong.append(f"text {hypothesis.text!r} of {tokens}")
    return wrong
