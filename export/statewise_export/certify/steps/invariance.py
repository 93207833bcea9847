"""A row alone against the same row in a batch, and beside a prompt that is read in the same run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statewise.bundles.figures import Tolerances
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.figures import describe_batch
from statewise_export.certify.inputs import Prompts
from statewise_export.certify.steps import drawn_vectors, tokens
from statewise_export.certify.tolerances import agree
from statewise_export.certify.trial import Trial

MIXED_CHUNK = 16
"""Items of a prompt that are read beside decoding rows."""
STEPS_PER_RUN = (1, 5, 16, 2)
NUM_COMPARED = 24
"""Items that are generated behind each prompt, alone and in company."""

_SAMPLED = {"categorical": tokens.SAMPLED, "mixture": drawn_vectors.SAMPLED, "value": (GREEDY,)}


def _run(trial: Trial) -> list[Outcome]:
    if trial.tolerances.batch == "within":
        is_invariant = agrees_in_batch(trial.decoder, trial.prompts, trial.tolerances)
    else:
        settings = _SAMPLED[trial.spec.head.kind]
        params = [settings[row % len(settings)] for row in range(len(trial.prompts))]
        num_items = min(NUM_COMPARED, trial.position_limit - max(map(len, trial.prompts.items)))
        is_invariant = is_batch_invariant(trial.decoder, trial.prompts, params, num_items, STEPS_PER_RUN)
    figure = describe_batch(trial.tolerances, is_invariant=is_invariant)
    return [Outcome("row alone = row in a batch", is_invariant, figure, figures={"batch_invariant": is_invariant})]


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


BATCH_INVARIANCE = Check("batch invariance", lambda trial: trial.spec.generates, _run)
