"""Preallocated state for every row that may run at once.

Rows in use are the prefix 0..n-1 of every buffer, so a batch is a view: nothing is gathered. Copy, save and load of one
row are all that moving, reusing and resuming a sequence needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from statewise.manifest import StateSpec

SavedRow = Mapping[str, NDArray[np.generic]]


class StatePool:
    """Two buffers for each state tensor: a run reads `current` and writes `next`."""

    def __init__(self, specs: Sequence[StateSpec], max_rows: int) -> None:
        self.specs = tuple(specs)
        self.max_rows = max_rows
        self.current = self._allocate()
        self.next = self._allocate()

    @property
    def bytes_per_row(self) -> int:
        """Bytes of state that one sequence carries."""
        return sum(buffer[0].nbytes for buffer in self.current.values())

    def commit(self, rows: slice, num_rows: int) -> None:
        """Make what a run wrote for `rows` current, `num_rows` being all rows in use.

        A run over all of them swaps the buffers; a run over some copies these, the others having no newer state.
        """
        if rows.start == 0 and rows.stop == num_rows:
            self.current, self.next = self.next, self.current
            return
        for name, buffer in self.current.items():
            buffer[rows] = self.next[name][rows]

    def clear_row(self, row: int) -> None:
        """The state before any item."""
        for buffer in self.current.values():
            buffer[row] = 0

    def copy_row(self, source: int, target: int) -> None:
        """Give `target` the state of `source`."""
        for buffer in self.current.values():
            buffer[target] = buffer[source]

    def save_row(self, row: int) -> SavedRow:
        """A copy of the row's state in host memory."""
        return {name: buffer[row].copy() for name, buffer in self.current.items()}

    def load_row(self, row: int, saved: SavedRow) -> None:
        """Put back what `save_row` gave, into any row."""
        for name, buffer in self.current.items():
            buffer[row] = saved[name]

    def _allocate(self) -> dict[str, NDArray[np.generic]]:
        return {spec.name: np.zeros((self.max_rows, *spec.row_shape), spec.dtype) for spec in self.specs}
