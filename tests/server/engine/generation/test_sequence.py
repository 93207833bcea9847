"""One request's items, text, log-probabilities and end, from results of runs that are written down here."""

from __future__ import annotations

from collections.abc import Sequence as Values
from typing import Any

import numpy as np
import pytest

from statewise.errors import DataLossError
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.queue_channel import QueueChannel
from statewise_server.engine.request import GenerationRequest, Stream, TokenLogProbability
from statewise_server.runtime.steps.runner import StepResult
from tests.models import END, byte_tokenizer

PROMPT = np.array([0, 70])
ROW = 1
"""The sequence's row in every result; others' values stand around it."""


def sequence(sampling: SamplingParams = GREEDY, max_tokens: int = 20, **fields: Any) -> Sequence:
    request = GenerationRequest(PROMPT, sampling, max_tokens, frozenset({END}), **fields)
    return Sequence(Stream(request, QueueChannel()), byte_tokenizer())


def tokens_of(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text).ids)


def result(tokens: Values[int]) -> StepResult:
    """A run of one step for each token; token t has log-probability -t, and is followed by t + 1 and t + 2 at the top.

    The run lists four most probable tokens, as if another row had asked for that many.
    """
    count = len(tokens)
    items = np.full((count, 3), 99)
    items[:, ROW] = tokens
    top = np.zeros((count, 3, 4), np.int64)
    top[:, ROW] = items[:, ROW, None] + np.arange(4)
    log_probabilities = -items.astype(np.float32)
    return StepResult(items, log_probabilities, top, -top.astype(np.float32))


def test_a_stop_string_inside_a_run_cuts_the_tokens_after_the_one_that_completes_it() -> None:
    """Tokens, log-probabilities and count end with the completing token, the text before the stop string."""
    made = sequence(stop_strings=("cd",), log_probabilities=0)

    first = made.append(result(tokens_of("ab")), ROW)
    last = made.append(result(tokens_of("cdef")), ROW)

    assert (first.text, last.text, last.finish_reason) == ("ab", "", "stop")
    assert first.items + last.items == tokens_of("abcd")
    assert [entry.token for entry in last.log_probabilities] == tokens_of("cd")
    assert made.num_output == 4


def test_a_stop_string_that_spans_runs_cuts_them_too() -> None:
    """Its beginning is held back from the text, though its token has been given."""
    made = sequence(stop_strings=("bcd",))

    first = made.append(result(tokens_of("abc")), ROW)
    last = made.append(result(tokens_of("dx")), ROW)

    assert (first.text, first.items, first.finish_reason) == ("a", tokens_of("abc"), None)
    assert (last.text, last.items, last.finish_reason) == ("", tokens_of("d"), "stop")


def test_an_end_token_inside_a_run_is_the_last_item() -> None:
    """Later items of the run are dropped, with their log-probabilities; the end token gives no text."""
    made = sequence(log_probabilities=0)

    delta = made.append(result([*tokens_of("a"), END, *tokens_of("b")]), ROW)

    assert (delta.items, delta.text, delta.finish_reason) == ([*tokens_of("a"), END], "a", "stop")
    assert [entry.log_probability for entry in delta.log_probabilities] == [-float(item) for item in delta.items]


def test_a_run_beyond_max_tokens_is_cut_there() -> None:
    """A run may make more items than this request wants; it ends with `length`, and an unfinished character shows."""
    made = sequence(max_tokens=2, log_probabilities=0)

    delta = made.append(result(tokens_of("aéb")), ROW)

    assert (delta.items, delta.finish_reason) == (tokens_of("aé")[:2], "length")
    assert delta.text == "a\N{REPLACEMENT CHARACTER}"
    assert len(delta.log_probabilities) == 2


def test_an_end_token_as_the_last_allowed_item_ends_with_stop() -> None:
    """The end token is a better reason than the limit."""
    delta = sequence(max_tokens=2).append(result([*tokens_of("a"), END]), ROW)

    assert delta.finish_reason == "stop"


@pytest.mark.parametrize("num_top", [0, 1, 3])
def test_log_probabilities_list_as_many_tokens_as_asked_for_in_the_runs_order(num_top: int) -> None:
    """Each item has its own, and the most probable ones first, however many the run lists for other rows."""
    delta = sequence(log_probabilities=num_top).append(result([40, 50]), ROW)

    expected = [
        (TokenLogProbability(t, -float(t), tuple((t + i, -float(t + i)) for i in range(num_top)))) for t in (40, 50)
    ]
    assert delta.log_probabilities == expected


def test_without_log_probabilities_none_are_given() -> None:
    """The run has made them for another row."""
    assert sequence().append(result([40]), ROW).log_probabilities == []


def test_items_that_are_not_finite_are_an_error() -> None:
    """A run with one bad item gives none of its items."""
    delta = sequence().append(result([40, -1]), ROW)

    assert (delta.items, type(delta.error)) == ([], DataLossError)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
        SamplingParams(temperature=0.0, presence_penalty=0.5),
        SamplingParams(temperature=0.0, frequency_penalty=0.5),
    ],
)
def test_penalties_count_the_output(sampling: SamplingParams) -> None:
    """Each token given is counted once, tokens of the prompt are seen with a count of 0, cut ones are not seen."""
    made = sequence(sampling, stop_strings=("b",))
    given = tokens_of("aab")

    made.append(result(given[:1]), ROW)
    made.append(result([*given[1:], *tokens_of("z")]), ROW)

    adjustment = made.adjuster.adjustment()
    assert adjustment is not None
    assert adjustment.seen.all()
    counts = dict(zip(adjustment.tokens.tolist(), adjustment.output_counts.tolist(), strict=True))
    assert counts == {0: 0, 70: 0, given[0]: 2, given[2]: 1}
