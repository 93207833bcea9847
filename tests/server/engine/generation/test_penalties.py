"""Penalties of the output, as the engine applies them from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, GenerationRequest
from statewise_server.engine.queue_channel import run_all
from tests.models import reference_decoder

PROMPT = np.array([5, 9, 5])
PENALTIES = [
    replace(GREEDY, repetition_penalty=1.5),
    replace(GREEDY, presence_penalty=0.4),
    replace(GREEDY, frequency_penalty=0.2),
    SamplingParams(seed=3, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5),
]


@pytest.mark.parametrize("name", ["rnn-1", "transformer"])
def test_penalties_count_the_output_as_the_reference_decoder_does(engine_of: Callable[..., Engine], name: str) -> None:
    """Each kind of penalty gives the reference's tokens over 60 steps, while rows that are not penalized run beside.

    Each of the greedy ones changes the output.
    """
    params = [*PENALTIES, GREEDY]
    lengths = [60] * len(PENALTIES) + [7]
    expected, _ = reference_decoder(name).generate([PROMPT] * len(params), params, 60)

    outputs = run_all(
        engine_of(name, max_rows=8),
        [GenerationRequest(PROMPT, own, length) for own, length in zip(params, lengths, strict=True)],
    )

    unpenalized = expected[-1].tolist()
    assert [output.items for output in outputs] == [row.tolist()[:n] for row, n in zip(expected, lengths, strict=True)]
    assert all(output.items != unpenalized for output in outputs[:3])
