"""The sampling parameters and the noise of every row, in the layout that the graphs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import HeadSpec
from statewise.rules.mixture import noise_of, noise_shape
from statewise.rules.sampling import GREEDY, SamplingParams, Uniforms
from statewise_server.runtime.steps.adjustment import Adjustment

NO_LOG_PROBABILITIES = -1


SavedParameters = tuple[NDArray[np.float32], np.int64, np.int64, Adjustment | None, Uniforms]

RESULTS = {
    "categorical": ("next_items", "log_probability", "top_tokens", "top_log_probabilities"),
    "mixture": ("next_items", "log_probability"),
    "value": ("next_items",),
}
"""What a graph gives of the items that it chooses, by the kind of head."""


class SamplerTable:
    """One line per row of the state pool; lines move as rows do."""

    def __init__(self, max_rows: int, head: HeadSpec) -> None:
        self.results = RESULTS[head.kind]
        self._head = head
        self._noise_shape = noise_shape(head)
        self.parameters = np.zeros((max_rows, 6), np.float32)
        self.top_k = np.zeros(max_rows, np.int64)
        self.num_top = np.full(max_rows, NO_LOG_PROBABILITIES, np.int64)
        self.adjustments: list[Adjustment | None] = [None] * max_rows
        self._noise = [noise_of(head, 0)] * max_rows
        for row in range(max_rows):
            self.set(row, GREEDY)

    def set(self, row: int, params: SamplingParams, num_top: int = NO_LOG_PROBABILITIES) -> None:
        """The parameters of the sequence that takes the row."""
        self.parameters[row] = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        self.top_k[row] = params.top_k
        self.num_top[row] = num_top
        self.adjustments[row] = None
        self._noise[row] = noise_of(self._head, params.seed or 0)

    def copy_row(self, source: int, target: int) -> None:
        """Give `target` the parameters of `source`."""
        self.load_row(target, self.save_row(source))

    def save_row(self, row: int) -> SavedParameters:
        """A copy of the row's parameters."""
        parameters = self.parameters[row].copy()
        return parameters, self.top_k[row], self.num_top[row], self.adjustments[row], self._noise[row]

    def load_row(self, row: int, saved: SavedParameters) -> None:
        """Put back what `save_row` gave, into any row."""
        self.parameters[row], self.top_k[row], self.num_top[row], self.adjustments[row], self._noise[row] = saved

    def noise(self, rows: slice, positions: Sequence[int], count: int) -> NDArray[np.float32]:
        """What the next `count` items of each row are drawn with, `[row, count, ...]`; zeros where a row is greedy.

        positions: how many items each row has drawn before.
        """
        numbers = self.no_noise(len(positions), count)
        for index, position in enumerate(positions):
            row = rows.start + index
            if self.parameters[row, 0]:
                numbers[index] = self._noise[row].take(position, count)
        return numbers

    def no_noise(self, num_rows: int, count: int) -> NDArray[np.float32]:
        """Zeros, for runs in which nothing is drawn."""
        return np.zeros((num_rows, count, *self._noise_shape), np.float32)

    def inputs(self, rows: slice, noise: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What a graph reads to choose the items of these rows, by name."""
        if self._head.kind == "categorical":
            ids, values = self.adjustment_arrays(rows)
            return {
                "sampling.parameters": self.parameters[rows],
                "sampling.top_k": self.top_k[rows],
                "sampling.adjust_ids": ids,
                "sampling.adjust_values": values,
                "sampling.num_top": self.num_top[rows].max(),
                "sampling.uniforms": noise,
            }
        if self._head.kind == "mixture":
            return {
                "sampling.temperature": self.parameters[rows, 0],
                "sampling.num_top": self.num_top[rows].max(),
                "sampling.noise": noise,
            }
        return {}

    def adjustment_arrays(self, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids `[row, entry]` and values `[row, entry, 3]`; zero entries where no row adjusts anything."""
        adjustments: Sequence[Adjustment | None] = self.adjustments[rows]
        width = max((len(a.ids) for a in adjustments if a), default=0)
        ids = np.zeros((len(adjustments), width), np.int64)
        values = np.zeros((len(adjustments), width, 3), np.float32)
        for row, adjustment in enumerate(adjustments):
            if adjustment is not None:
                # A shorter row repeats its first entry: the graph writes the same value to the same place again.
                ids[row], values[row] = adjustment.ids[0], adjustment.values[0]
                ids[row, : len(adjustment.ids)] = adjustment.ids
                values[row, : len(adjustment.ids)] = adjustment.values
        return ids, values
