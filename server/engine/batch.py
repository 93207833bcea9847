"""Sequences into the arrays of one run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.engine.sequence import Sequence
from server.runtime.runner import Runner, StepResult


def decode(runner: Runner, sequences: list[Sequence], num_steps: int, num_rows: int) -> StepResult:
    """Make `num_steps` items for each of the decoding sequences, which hold the first rows of `num_rows` in use."""
    items = np.array([sequence.last_item for sequence in sequences])[:, None]
    _set_adjustments(runner, sequences)
    return runner.decode(len(sequences), items, _uniforms(sequences, num_steps), num_rows=num_rows)


def prefill(runner: Runner, sequences: list[Sequence], chunk_lengths: tuple[int, ...], num_rows: int) -> StepResult:
    """Read the next chunk of each prompt; the sequences hold rows one behind the other."""
    prompt = sequences[0].request.prompt
    items = np.zeros((len(sequences), max(chunk_lengths), *prompt.shape[1:]), prompt.dtype)
    for row, (sequence, length) in enumerate(zip(sequences, chunk_lengths, strict=True)):
        items[row, :length] = sequence.request.prompt[sequence.num_prefilled :][:length]
    _set_adjustments(runner, sequences)
    first = sequences[0].row
    rows = slice(first, first + len(sequences))
    return runner.step(rows, items, np.array(chunk_lengths), _uniforms(sequences, 1), num_rows=num_rows)


def _uniforms(sequences: list[Sequence], count: int) -> NDArray[np.float32]:
    numbers = np.zeros((len(sequences), count), np.float32)
    for row, sequence in enumerate(sequences):
        if not sequence.request.sampling.is_greedy:
            numbers[row] = sequence.uniforms.take(sequence.num_output, count)
    return numbers


def _set_adjustments(runner: Runner, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        if sequence.adjuster.changes or not sequence.num_output:
            runner.sampler.adjustments[sequence.row] = sequence.adjuster.adjustment()
