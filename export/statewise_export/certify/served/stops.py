"""Ends of served streams: end tokens, the model's own one among them, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from statewise.rules.sampling import SamplingParams
from statewise_export.certify.check import Outcome
from statewise_export.certify.served.run import Served, serve
from statewise_export.certify.served.text import REPLACEMENT, decode, same_text, tokenizer_of
from statewise_export.certify.trial import Trial
from statewise_server.engine import Engine, GenerationRequest

SURELY = 100.0
"""A bias that makes a token the next one, whatever the logits."""
STOP_LENGTH = 2


def stop_outcomes(trial: Trial, engine: Engine, answered: Sequence[Served]) -> list[Outcome]:
    """Ask again for answers that are known, to end at a token or at a string of theirs."""
    outcomes = [_end_tokens(engine, answered)]
    own = trial.checkpoint.special_tokens.ends
    if own:
        outcomes.append(_own_end(trial, engine, answered[0].request, own))
    tokenizer = tokenizer_of(trial)
    if tokenizer is not None:
        outcomes += _stop_strings(engine, tokenizer, answered)
    return outcomes


def _end_tokens(engine: Engine, answered: Sequence[Served]) -> Outcome:
    """An answer ends with the first end token, which it holds, for the reason "stop"."""
    wanted = [_with_end(served) for served in answered]
    wrong = []
    for served in serve(engine, wanted):
        items, ends = served.items.tolist(), served.request.end_tokens
        places = [place for place, token in enumerate(items) if token in ends]
        if places != [len(items) - 1] or served.answer.finish_reason != "stop":
            wrong.append(f"end token {set(ends)} in {items}, finish reason {served.answer.finish_reason}")
    figure = wrong[0] if wrong else f"{len(wanted)} answers end where they should"
    return Outcome("served: end tokens", not wrong, figure)


def _with_end(served: Served) -> Served:
    """The request again, to end at the token of its answer that is new latest."""
    items = served.items.tolist()
    end = items[max(items.index(token) for token in items)]
    return Served(replace(served.request, end_tokens=frozenset({end})))


def _own_end(trial: Trial, engine: Engine, request: GenerationRequest, ends: frozenset[int]) -> Outcome:
    """The tokens by which the checkpoint ends a text end it when the engine obeys the manifest."""
    stated = trial.bundle.manifest.special_tokens.ends
    requests = [
        Served(
            replace(
                request,
                sampling=SamplingParams(temperature=0.0, logit_bias={end: SURELY}, seed=0),
                end_tokens=stated,
                max_tokens=min(2, request.max_tokens),
            )
        )
        for end in sorted(ends)
    ]
    wrong = [
        f"token {end} is the checkpoint's end, and the answer went on: {served.items.tolist()}"
        for end, served in zip(sorted(ends), serve(engine, requests), strict=True)
        if served.items.tolist() != [end] or served.answer.finish_reason != "stop" or served.answer.text
    ]
    return Outcome("served: the model's own end", not wrong, wrong[0] if wrong else f"{len(ends)} tokens end an answer")


def _stop_strings(engine: Engine, tokenizer: Tokenizer, answered: Sequence[Served]) -> list[Outcome]:
    """An answer's text ends before the stop string, and its tokens with the one that completes it."""
    found = [(served, stop) for served in answered if (stop := _stop_in(decode(tokenizer, served.items)))]
    requests = [Served(replace(served.request, stop_strings=(stop,))) for served, stop in found]
    wrong = []
    for served in serve(engine, requests) if requests else ():
        items, (stop,), reason = served.items.tolist(), served.request.stop_strings, served.answer.finish_reason
        texts = [decode(tokenizer, items[:count]) for count in range(1, len(items) + 1)]
        ends = [count for count, text in enumerate(texts, start=1) if stop in text]
        expected = texts[-1][: texts[-1].find(stop)] if ends else texts[-1]
        is_right = ends == [len(items)] and reason == "stop" and same_text(tokenizer, served.answer.text, expected)
        if not is_right:
            wrong.append(f"stop string {stop!r}: text {served.answer.text!r} of {texts[-1]!r}, finish reason {reason}")
    figure = wrong[0] if wrong else f"{len(requests)} answers stop where they should"
    return [Outcome("served: stop strings", not wrong, figure)] if requests else []


def _stop_in(text: str) -> str | None:
    """A few whole characters from the middle of a text; None where it has none."""
    places = sorted(range(1, len(text)), key=lambda place: abs(place - len(text) // 2))
    pieces = (text[place : place + length] for length in range(STOP_LENGTH, 0, -1) for place in places)
    return next((piece for piece in pieces if piece and REPLACEMENT not in piece), None)
