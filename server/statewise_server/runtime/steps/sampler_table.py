"""The sampling parameters and the noise of every row, as the graphs read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statewise.model.graph_io import choice_inputs, choice_results
from statewise.model.sampling_inputs import (
    ADJUSTED_TOKENS,
    LOGIT_BIAS,
    NOISE,
    NUM_TOP,
    OUTPUT_COUNTS,
    SEEN,
    TEMPERATURE,
    check_rules,
    sampling_inputs,
)
from statewise.model.spec import HeadSpec
from statewise.rules.mixture import noise_of, noise_shape
from statewise.rules.sampling import GREEDY, SamplingParams, Uniforms
from statewise_server.runtime.steps.adjustment import Adjustment

Array = NDArray[Any]

NO_LOG_PROBABILITIES = -1


class SavedParameters(NamedTuple):
    """A row of the table."""

    rules: list[float]
    num_top: int
    adjustment: Adjustment | None
    noise: Uniforms


class SamplerTable:
    """One line per row of the state pool; lines move as rows do.

    declared: inputs of the graphs that choose; those that the head's kind has, where absent.
    """

    def __init__(self, max_rows: int, head: HeadSpec, declared: Collection[str] | None = None) -> None:
        self.results = [result.name for result in choice_results(head, ())]
        self._head = head
        self._inputs = {each.name: each.dtype for each in choice_inputs(head, "row")}
        self._declared = self._inputs.keys() if declared is None else declared
        self._noise_shape = noise_shape(head)
        self._rules = [rule for rule in sampling_inputs(head) if not rule.per_token]
        self.rules: dict[str, Array] = {r.name: np.full(max_rows, r.neutral, r.dtype) for r in self._rules}
        """`[row]` by the name of the graph input; each stays in its place."""
        self.num_top = np.full(max_rows, NO_LOG_PROBABILITIES, np.int64)
        self.adjustments: list[Adjustment | None] = [None] * max_rows
        self._noise = [noise_of(head, 0)] * max_rows
        for row in range(max_rows):
            self.set(row, GREEDY)

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequestError, naming the field, where the graphs lack a rule that these parameters need."""
        check_rules(params, self._head, self._declared)

    def set(self, row: int, params: SamplingParams, num_top: int = NO_LOG_PROBABILITIES) -> None:
        """Set the parameters of the sequence that takes the row."""
        for rule in self._rules:
            self.rules[rule.name][row] = rule.read(params)
        self.num_top[row] = num_top
        self.adjustments[row] = None
        self._noise[row] = noise_of(self._head, params.seed or 0)

    def copy_row(self, source: int, target: int) -> None:
        """Give `target` the parameters of `source`."""
        self.load_row(target, self.save_row(source))

    def save_row(self, row: int) -> SavedParameters:
        """A copy of the row's parameters."""
        rules = [values[row] for values in self.rules.values()]
        return SavedParameters(rules, int(self.num_top[row]), self.adjustments[row], self._noise[row])

    def load_row(self, row: int, saved: SavedParameters) -> None:
        """Put back what `save_row` gave, into any row."""
        for values, value in zip(self.rules.values(), saved.rules, strict=True):
            values[row] = value
        self.num_top[row], self.adjustments[row], self._noise[row] = saved[1:]

    def noise(self, rows: slice, positions: Sequence[int], count: int) -> NDArray[np.float32]:
        """The noise of the next `count` items of each row, `[row, count, ...]`; zeros where nothing is drawn.

        positions: how many items each row has drawn before.
        """
        numbers = self.no_noise(len(positions), count)
        temperatures = self.rules.get(TEMPERATURE.name)
        if temperatures is not None:
            for index in np.flatnonzero(temperatures[rows]).tolist():
                numbers[index] = self._noise[rows.start + index].take(positions[index], count)
        return numbers

    def no_noise(self, num_rows: int, count: int) -> NDArray[np.float32]:
        """Zeros, for runs in which nothing is drawn."""
        return np.zeros((num_rows, count, *self._noise_shape), np.float32)

    def inputs(self, rows: slice, noise: NDArray[np.float32]) -> dict[str, Array]:
        """All inputs of the choice of these rows' items, by name."""
        if not self._inputs:
            return {}
        shared = {NUM_TOP: self.num_top[rows].max(), NOISE: noise}
        rules = {name: values[rows] for name, values in self.rules.items()}
        return rules | shared | (self._entries(rows) if ADJUSTED_TOKENS in self._inputs else {})

    def _entries(self, rows: slice) -> dict[str, Array]:
        """The inputs `[row, entry]` that adjust logits; zero entries where no row adjusts anything."""
        adjustments: Sequence[Adjustment | None] = self.adjustments[rows]
        width = max((len(adjustment.tokens) for adjustment in adjustments if adjustment), default=0)
        shape = (len(adjustments), width)
        names = (ADJUSTED_TOKENS, LOGIT_BIAS.name, SEEN, OUTPUT_COUNTS)
        inputs: dict[str, Array] = {name: np.zeros(shape, self._inputs[name]) for name in names}
        for row, adjustment in enumerate(adjustments):
            if adjustment is not None:
                for values, part in zip(inputs.values(), adjustment.columns, strict=True):
                    # A shorter row repeats its first entry: the graph writes the same value to the same place again.
                    values[row] = part[0]
                    values[row, : len(part)] = part
        return inputs
