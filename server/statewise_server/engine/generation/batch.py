"""The runs of one step: sequences as arrays, and each sequence's part of the results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise_server.engine.generation.scheduler import Plan
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.runtime.steps.runner import Runner, StepResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sequence's part of a run's result."""

    sequence: Sequence
    result: StepResult
    row: int
    """The sequence's row in the result."""
    num_prompt_items: int = 0
    """Prompt items that the run has read; 0 where the sequence decodes."""


@dataclass(frozen=True, slots=True)
class StepOutcomes:
    """The outcomes of all runs of one step."""

    outcomes: list[Outcome]
    num_source_items: int
    """Source items that were read."""
    decode_seconds: float
    """Seconds of one decode step, the mean over the run; 0 where no row decodes."""


def run_step(runner: Runner, plan: Plan, running: list[Sequence]) -> StepOutcomes:
    """Run what the plan says: encode sources, decode, then prefill."""
    num_source_items = encode(runner, plan, running)
    started = time.monotonic()
    decoded = decode(runner, plan, running)
    decode_seconds = (time.monotonic() - started) / plan.num_decode_steps if decoded else 0.0
    return StepOutcomes([*decoded, *prefill(runner, plan, running)], num_source_items, decode_seconds)


def encode(runner: Runner, plan: Plan, running: list[Sequence]) -> int:
    """Encode the sources of the rows whose prompts are about to be read; returns the number of source items."""
    num_items = 0
    beginning = running[plan.num_decoding :][: len(plan.chunk_lengths)]
    for is_left, group in groupby(beginning, lambda sequence: sequence.num_source_left > 0):
        if not is_left:
            continue
        sequences = list(group)
        rows = slice(sequences[0].row, sequences[-1].row + 1)
        runner.encode(rows, [sequence.request.source for sequence in sequences if sequence.request.source is not None])
        for sequence in sequences:
            num_items += sequence.num_source_left
            sequence.num_source_left = 0
    return num_items


def decode(runner: Runner, plan: Plan, running: list[Sequence]) -> list[Outcome]:
    """Generate items for all decoding sequences; a mixed step also reads a chunk of the first prompt behind them."""
    decoding = running[: plan.num_decoding]
    if not decoding:
        return []
    items = np.array([sequence.last_item for sequence in decoding])[:, None]
    if not plan.is_mixed:
        _set_adjustments(runner, decoding)
        noise = _noise(runner, decoding, plan.num_decode_steps)
        result = runner.decode(plan.num_decoding, items, noise, num_rows=len(running))
        return _outcomes(decoding, result)
    everyone, length = running[: plan.num_decoding + 1], plan.chunk_lengths[0]
    _set_adjustments(runner, everyone)
    chunk = _next_items(everyone[-1], length)[None]
    result = runner.mixed(plan.num_decoding, items, chunk, _noise(runner, everyone, 1), num_rows=len(running))
    return _outcomes(everyone, result, (*(0 for _ in decoding), length))


def prefill(runner: Runner, plan: Plan, running: list[Sequence]) -> list[Outcome]:
    """Read the next chunks of the prompts, except the one that a mixed step reads."""
    lengths = plan.chunk_lengths[plan.is_mixed :]
    if not lengths:
        return []
    first = plan.num_decoding + plan.is_mixed
    sequences = running[first : first + len(lengths)]
    prompt = sequences[0].request.prompt
    items = np.zeros((len(sequences), max(lengths), *prompt.shape[1:]), prompt.dtype)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        items[row, :length] = _next_items(sequence, length)
    _set_adjustments(runner, sequences)
    rows = slice(first, first + len(sequences))
    result = runner.step(rows, items, np.array(lengths), _noise(runner, sequences, 1), num_rows=len(running))
    return _outcomes(sequences, result, lengths)


def _outcomes(sequences: list[Sequence], result: StepResult, lengths: tuple[int, ...] = ()) -> list[Outcome]:
    lengths = lengths or (0,) * len(sequences)
    return [
        Outcome(sequence, result, row, length)
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True))
    ]


def _next_items(sequence: Sequence, length: int) -> NDArray[Any]:
    return sequence.request.prompt[sequence.num_prefilled :][:length]


def _noise(runner: Runner, sequences: list[Sequence], count: int) -> NDArray[np.float32]:
    """Random numbers for the next items of sequences in neighbouring rows."""
    rows = slice(sequences[0].row, sequences[-1].row + 1)
    return runner.sampler.noise(rows, [sequence.num_output for sequence in sequences], count)


def _set_adjustments(runner: Runner, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        if sequence.adjuster.changes or not sequence.num_output:
            runner.sampler.adjustments[sequence.row] = sequence.adjuster.adjustment()
