"""The check of batch invariance against decoders in which company changes one figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.driver import Prefilled, RuntimeDecoder
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.steps.invariance import is_batch_invariant
from statewise_server.runtime.steps.runner import Runner
from tests.models import draft_bundle

PROMPTS = Prompts([np.array([5, 6, 7]), np.array([8]), np.array([9, 5])])
PARAMS = [GREEDY, SamplingParams(seed=1), SamplingParams(seed=2, top_k=5)]


class Swayed(RuntimeDecoder):
    """Changes one figure of the last row when other rows run beside it."""

    def __init__(self, runner: Runner, changed: str) -> None:
        super().__init__(runner)
        self._changed = changed

    def prefill(self, prompts: Sequence[Any], *arguments: Any, **named: Any) -> Prefilled:
        prefilled = super().prefill(prompts, *arguments, **named)
        if self._changed == "outputs" and len(prompts) > 1:
            row = prefilled.outputs[-1]
            last = max(row)
            row[last] = np.nextafter(row[last], np.float32(np.inf))
        return prefilled

    def generate(self, prompts: Sequence[Any], *arguments: Any, **named: Any) -> tuple[list[Any], list[Any]]:
        items, log_probabilities = super().generate(prompts, *arguments, **named)
        if self._changed == "items" and len(prompts) > 1:
            items[-1][-1] += 1
        if self._changed == "log-probabilities" and len(prompts) > 1:
            log_probabilities[-1][-1] = np.nextafter(log_probabilities[-1][-1], np.float32(0))
        return items, log_probabilities

    def generate_beside(self, *arguments: Any, **named: Any) -> tuple[list[Any], list[Any], Any]:
        items, log_probabilities, rest = super().generate_beside(*arguments, **named)
        if self._changed == "items beside a prompt":
            items[0][-1] += 1
        if self._changed == "log-probabilities beside a prompt":
            log_probabilities[0][-1] = np.nextafter(log_probabilities[0][-1], np.float32(0))
        return items, log_probabilities, rest


@cache
def runner_of(name: str) -> Runner:
    return Runner.load(draft_bundle(name, "cpu-float32"), "cpu-float32", max_rows=4, intra_op_threads=1)


@pytest.mark.parametrize(
    ("name", "changed", "is_invariant"),
    [
        ("rnn-1", "nothing", True),
        ("rnn-1", "outputs", False),
        ("rnn-1", "items", False),
        ("rnn-1", "log-probabilities", False),
        ("transformer", "nothing", True),
        ("transformer", "items beside a prompt", False),
        ("transformer", "log-probabilities beside a prompt", False),
    ],
)
def test_one_figure_that_company_changes_is_found(name: str, changed: str, is_invariant: bool) -> None:
    """One item, or the last bit of one output or log-probability, of one row among three."""
    decoder = Swayed(runner_of(name), changed)

    assert is_batch_invariant(decoder, PROMPTS, PARAMS, 6, (1, 5)) is is_invariant
