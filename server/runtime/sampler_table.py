"""The sampling parameters of every row, in the layout that the graphs read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.runtime.adjustment import Adjustment
from statewise.sampling import GREEDY, SamplingParams

NO_LOG_PROBABILITIES = -1


SavedParameters = tuple[NDArray[np.float32], np.int64, np.int64, Adjustment | None]


class SamplerTable:
    """One line per row of the state pool; lines move as rows do."""

    def __init__(self, max_rows: int) -> None:
        self.parameters = np.zeros((max_rows, 6), np.float32)
        self.top_k = np.zeros(max_rows, np.int64)
        self.num_top = np.full(max_rows, NO_LOG_PROBABILITIES, np.int64)
        self.adjustments: list[Adjustment | None] = [None] * max_rows
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

    def copy_row(self, source: int, target: int) -> None:
        """Give `target` the parameters of `source`."""
        self.load_row(target, self.save_row(source))

    def save_row(self, row: int) -> SavedParameters:
        """A copy of the row's parameters."""
        return self.parameters[row].copy(), self.top_k[row], self.num_top[row], self.adjustments[row]

    def load_row(self, row: int, saved: SavedParameters) -> None:
        """Put back what `save_row` gave, into any row."""
        self.parameters[row], self.top_k[row], self.num_top[row], self.adjustments[row] = saved

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
