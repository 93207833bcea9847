"""Preallocated state for every row that may run at once.

Rows in use are the prefix 0..n-1 of every buffer, so a batch is a view: nothing is gathered. Copy, save and load of one
row are all that moving, reusing and resuming a sequence needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.runtime.memory import HOST, Buffer, Memory
from statewise.manifest import StateSpec

Buffers = dict[str, Buffer]


@dataclass(frozen=True, slots=True)
class SavedRow:
    """The state of one sequence, in host memory."""

    tensors: dict[str, NDArray[np.generic]]
    """Caches hold the filled positions only."""
    num_filled: int


class StatePool:
    """Recurrent state has two buffers, a run reading `current` and writing `next`; a cache is written in place."""

    def __init__(
        self,
        specs: Sequence[StateSpec],
        max_rows: int,
        max_positions: int | None = None,
        memory: Memory = HOST,
        *,
        reads_ahead: bool = False,
    ) -> None:
        self.specs = tuple(specs)
        self.memory = memory
        self.reads_ahead = reads_ahead
        """Whether runs read a cache behind its filled positions, weighing with zero: no NaN of others may lie there."""
        self.max_rows = max_rows
        self.current = self._allocate("recurrent")
        self.next = self._allocate("recurrent")
        self.caches = self._allocate("cache", max_positions or 0)
        self.num_filled = np.zeros(max_rows, np.int64)
        """Positions of each row's caches that hold items."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes of state that one sequence carries, caches counted at their full length."""
        total = sum(buffer.nbytes for buffers in (self.current, self.caches) for buffer in buffers.values())
        return int(total) // self.max_rows

    def buffers(self, name: str) -> tuple[Buffer, Buffer]:
        """Where a run reads a state tensor, and where it writes it."""
        if name in self.caches:
            return self.caches[name], self.caches[name]
        return self.current[name], self.next[name]

    def commit(self, rows: slice, num_rows: int, num_items: NDArray[np.int64] | int) -> None:
        """Make what a run wrote for `rows` current, `num_rows` being all rows in use, after so many items per row.

        A run over all of them swaps the buffers; a run over some copies these, the others having no newer state.
        """
        self.num_filled[rows] += num_items
        if rows.start == 0 and rows.stop == num_rows:
            self.current, self.next = self.next, self.current
            return
        for name, buffer in self.current.items():
            self.memory.copy(self.next[name], rows, buffer, rows)

    def clear_row(self, row: int) -> None:
        """The state before any item."""
        self.num_filled[row] = 0
        for buffer in self.current.values():
            self.memory.write(buffer, row, np.zeros(buffer.shape[1:], buffer.dtype))
        for cache in self.caches.values() if self.reads_ahead else ():
            self.memory.write(cache, row, np.zeros(cache.shape[1:], cache.dtype))

    def copy_row(self, source: int, target: int) -> None:
        """Give `target` the state of `source`."""
        self.num_filled[target] = self.num_filled[source]
        for buffer in self.current.values():
            self.memory.copy(buffer, slice(source, source + 1), buffer, slice(target, target + 1))
        for cache in self.caches.values():
            count = cache.shape[2] if self.reads_ahead else int(self.num_filled[source])
            self.memory.copy_positions(cache, source, cache, target, count)

    def save_row(self, row: int) -> SavedRow:
        """A copy of the row's state."""
        count = int(self.num_filled[row])
        tensors = {name: self.memory.read(buffer, row) for name, buffer in self.current.items()}
        tensors |= {name: self.memory.read_positions(cache, row, 0, count) for name, cache in self.caches.items()}
        return SavedRow(tensors, count)

    def load_row(self, row: int, saved: SavedRow) -> None:
        """Put back what `save_row` gave, into any row."""
        self.num_filled[row] = saved.num_filled
        for name, buffer in self.current.items():
            self.memory.write(buffer, row, saved.tensors[name])
        for name, cache in self.caches.items():
            self.memory.write_positions(cache, row, 0, saved.tensors[name])

    def _allocate(self, kind: str, num_positions: int = 0) -> Buffers:
        return {
            spec.name: self.memory.zeros((self.max_rows, *spec.row_shape(num_positions)), spec.dtype)
            for spec in self.specs
            if spec.kind == kind
        }
