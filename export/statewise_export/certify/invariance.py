"""Whether a row alone gives what it gives in company, as far as a certificate asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statewise.bundles.certificate import Tolerances
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.tolerances import agree

MIXED_CHUNK = 16
"""Items of a prompt that are read beside decoding rows."""


def agrees_in_batch(decoder: RuntimeDecoder, prompts: Prompts, tolerances: Tolerances) -> bool:
    """Whether rows alone give the outputs that they give together, within the tolerances."""
    together = decoder.prefill(prompts.items, [GREEDY] * len(prompts), 16, prompts.sources).outputs
    ones = [prompts.take([row]) for row in range(len(prompts))]
    alone = [decoder.prefill(one.items, [GREEDY], 16, one.sources).outputs[0] for one in ones]
    rows = zip(alone, together, strict=True)
    return all(agree(one[position], row[position], tolerances) for one, row in rows for position in row)


def is_batch_invariant(
    decoder: RuntimeDecoder,
    prompts: Prompts,
    params: list[SamplingParams],
    num_items: int,
    steps_per_run: Sequence[int],
) -> bool:
    """Whether rows alone give bit for bit what they give together: outputs, items and log-probabilities."""
    together = decoder.prefill(prompts.items, params, 16, prompts.sources).outputs
    items, log_probabilities = decoder.generate(
        prompts.items, params, num_items, prompts.sources, chunk=64, steps_per_run=steps_per_run
    )
    for row in range(len(prompts)):
        one = prompts.take([row])
        (alone,) = decoder.prefill(one.items, [params[row]], 16, one.sources).outputs
        same = all(np.array_equal(alone[at], together[row][at]) for at in alone)
        own_items, own_log_probabilities = decoder.generate(
            one.items, [params[row]], num_items, one.sources, chunk=64, steps_per_run=(3, 1, 8)
        )
        same &= np.array_equal(own_items[0], items[row])
        same &= np.array_equal(own_log_probabilities[0], log_probabilities[row])
        if not same:
            return False
    return not decoder.runner.can_mix or _mixes_exactly(decoder, prompts, params)


def _mixes_exactly(decoder: RuntimeDecoder, prompts: Prompts, params: list[SamplingParams]) -> bool:
    """Whether rows that decode while a prompt is read, and that prompt, give bit for bit what each gives alone."""
    if len(prompts) == 1:
        prompts, params = prompts.take([0, 0]), params * 2
    every_items, every_log_probabilities, _ = decoder.generate_beside(
        prompts.items, params, MIXED_CHUNK, prompts.sources
    )
    for row, (items, log_probabilities) in enumerate(zip(every_items, every_log_probabilities, strict=True)):
        one = prompts.take([row])
        own_items, own_log_probabilities = decoder.generate(
            one.items, [params[row]], len(items), one.sources, chunk=MIXED_CHUNK
        )
        if not (np.array_equal(own_items[0], items) and np.array_equal(own_log_probabilities[0], log_probabilities)):
            return False
    return True
