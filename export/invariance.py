"""Whether a row alone gives what it gives in company, as far as a certificate asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.driver import RuntimeDecoder
from export.tolerances import agree
from statewise.certificate import Tolerances
from statewise.sampling import GREEDY, SamplingParams

Array = NDArray[Any]

MIXED_CHUNK = 16
"""Items of a prompt that are read beside decoding rows."""


def agrees_in_batch(decoder: RuntimeDecoder, prompts: list[Array], tolerances: Tolerances) -> bool:
    """Whether rows alone give the outputs that they give together, within the tolerances."""
    together = decoder.prefill(prompts, [GREEDY] * len(prompts), 16).outputs
    alone = [decoder.prefill([prompt], [GREEDY], 16).outputs[0] for prompt in prompts]
    rows = zip(alone, together, strict=True)
    return all(agree(one[position], row[position], tolerances) for one, row in rows for position in row)


def is_batch_invariant(
    decoder: RuntimeDecoder,
    prompts: list[Array],
    params: list[SamplingParams],
    num_items: int,
    steps_per_run: Sequence[int],
) -> bool:
    """Whether rows alone give bit for bit what they give together: outputs, items and log-probabilities."""
    together = decoder.prefill(prompts, params, 16).outputs
    items, log_probabilities = decoder.generate(prompts, params, num_items, chunk=64, steps_per_run=steps_per_run)
    for row, prompt in enumerate(prompts):
        (alone,) = decoder.prefill([prompt], [params[row]], 16).outputs
        same = all(np.array_equal(alone[at], together[row][at]) for at in alone)
        own_items, own_log_probabilities = decoder.generate(
            [prompt], [params[row]], num_items, chunk=64, steps_per_run=(3, 1, 8)
        )
        same &= np.array_equal(own_items[0], items[row])
        same &= np.array_equal(own_log_probabilities[0], log_probabilities[row])
        if not same:
            return False
    return not decoder.runner.can_mix or _mixes_exactly(decoder, prompts, params)


def _mixes_exactly(decoder: RuntimeDecoder, prompts: list[Array], params: list[SamplingParams]) -> bool:
    """Whether rows that decode while a prompt is read, and that prompt, give bit for bit what each gives alone."""
    if len(prompts) == 1:
        prompts, params = prompts * 2, params * 2
    every_items, every_log_probabilities, _ = decoder.generate_beside(prompts, params, MIXED_CHUNK)
    for row, (items, log_probabilities) in enumerate(zip(every_items, every_log_probabilities, strict=True)):
        own_items, own_log_probabilities = decoder.generate(
            [prompts[row]], [params[row]], len(items), chunk=MIXED_CHUNK
        )
        if not (np.array_equal(own_items[0], items) and np.array_equal(own_log_probabilities[0], log_probabilities)):
            return False
    return True
