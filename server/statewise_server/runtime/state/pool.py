"""Preallocated state for every row that may run at once.

Rows in use are the prefix 0..n-1 of every buffer, so a batch is a view: nothing is gathered. Copy, save and load of one
row are all that moving, reusing and resuming a sequence needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import StateSpec
from statewise_server.runtime.state.memory import HOST, Buffer, Memory

Buffers = dict[str, Buffer]

_LEAST_CAPACITY = 64


def capacity_for(num_positions: int, max_positions: int) -> int:
    """The bucket that holds so many positions: 64, 128, 256 and so on, at most `max_positions`."""
    capacity = _LEAST_CAPACITY
    while capacity < num_positions:
        capacity *= 2
    return min(capacity, max_positions)


def bytes_per_row(specs: Sequence[StateSpec], capacity: int) -> int:
    """Bytes that a pool of this capacity holds for one row."""
    return sum((2 if spec.kind == "recurrent" else 1) * _num_bytes(spec, capacity) for spec in specs)


def saved_bytes(specs: Sequence[StateSpec], num_positions: int) -> int:
    """Bytes of a saved row with so many positions of its caches."""
    return sum(_num_bytes(spec, num_positions) for spec in specs)


def _num_bytes(spec: StateSpec, num_positions: int) -> int:
    return math.prod(spec.row_shape(num_positions)) * np.dtype(spec.dtype).itemsize


@dataclass(frozen=True, slots=True)
class SavedRow:
    """The state of one sequence, or of its last positions, in host memory."""

    tensors: dict[str, NDArray[np.generic]]
    """The cache's positions from `start` to `num_filled`."""
    start: int
    num_filled: int


class StatePool:
    """Recurrent state has two buffers, a run reading `current` and writing `next`; a cache is written in place.

    A memory is written by the run that makes it of a source, and then only read.
    """

    def __init__(
        self,
        specs: Sequence[StateSpec],
        num_rows: int,
        capacity: int = 0,
        memory: Memory = HOST,
        *,
        reads_ahead: bool = False,
    ) -> None:
        self.specs = tuple(specs)
        self.memory = memory
        self.reads_ahead = reads_ahead
        """Whether runs read a cache behind its filled positions, weighing with zero: no NaN of others may lie there."""
        self.num_rows = num_rows
        self.capacity = capacity
        """Positions for which each row's caches have room."""
        self.num_resizes = 0
        """Number of times that caches and memories have moved."""
        self.is_swapped = False
        """Index of the current one of the two buffers, which alternate with every run over all rows."""
        self.current = self._allocate("recurrent")
        self.next = self._allocate("recurrent")
        self.caches = self._allocate("cache")
        self.memories = self._allocate("memory")
        self.num_filled = np.zeros(num_rows, np.int64)
        """Positions of each row's caches that hold items."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        every = (self.current, self.next, self.caches, self.memories)
        return sum(int(buffer.nbytes) for buffers in every for buffer in buffers.values())

    def resize(self, num_rows: int, capacity: int, num_rows_in_use: int) -> None:
        """Give the pool another size; the rows in use must fit and keep their state.

        One tensor is moved after the other, so the most memory held at once is one tensor above the larger size.
        """
        if (num_rows, capacity) == (self.num_rows, self.capacity):
            return
        # Until all is moved the pool has no size: if memory runs out half-way, the next call starts again.
        self.num_rows = self.capacity = 0
        self.num_resizes += 1
        in_use = slice(0, num_rows_in_use)
        for spec in self.specs:
            shape = (num_rows, *spec.row_shape(capacity))
            if spec.kind == "cache":
                self.caches[spec.name] = self._moved(self.caches[spec.name], shape, num_rows_in_use)
                continue
            buffers = self.current if spec.kind == "recurrent" else self.memories
            moved = self.memory.zeros(shape, spec.dtype)
            if num_rows_in_use:
                self.memory.copy(buffers[spec.name], in_use, moved, in_use)
            buffers[spec.name] = moved
            if spec.kind == "recurrent":
                self.next[spec.name] = self.memory.zeros(shape, spec.dtype)
        num_filled = np.zeros(num_rows, np.int64)
        num_filled[in_use] = self.num_filled[in_use]
        self.num_filled, self.num_rows, self.capacity = num_filled, num_rows, capacity

    def _moved(self, cache: Buffer, shape: tuple[int, ...], num_rows_in_use: int) -> Buffer:
        # Positions after the filled ones stay zero, whatever was there before.
        moved = self.memory.zeros(shape, cache.dtype)
        for row, count in enumerate(self.num_filled[:num_rows_in_use].tolist()):
            self.memory.copy_positions(cache, row, moved, row, count)
        return moved

    def buffers(self, name: str) -> tuple[Buffer, Buffer | None]:
        """Buffers from which a run reads a state tensor, and to which it writes it, if it does."""
        if name in self.caches:
            return self.caches[name], self.caches[name]
        if name in self.memories:
            return self.memories[name], None
        return self.current[name], self.next[name]

    @property
    def first_state(self) -> Buffers:
        """Buffers for the first state that a run makes of sources: all state but the caches."""
        return self.current | self.memories

    def commit(self, rows: slice, num_rows: int, num_items: NDArray[np.int64] | int) -> None:
        """Make what a run wrote for `rows` current, `num_rows` being all rows in use, after so many items per row.

        A run over all of them swaps the buffers; a run over some copies these, the others having no newer state.
        """
        self.num_filled[rows] += num_items
        if rows.start == 0 and rows.stop == num_rows:
            self.current, self.next = self.next, self.current
            self.is_swapped = not self.is_swapped
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

    def copy_row(self, source: int, target: int, *, with_memory: bool = True) -> None:
        """Give `target` the state of `source`; its memory too, unless that is the same already."""
        self.num_filled[target] = self.num_filled[source]
        for buffer in (self.first_state if with_memory else self.current).values():
            self.memory.copy(buffer, slice(source, source + 1), buffer, slice(target, target + 1))
        count = self.capacity if self.reads_ahead else int(self.num_filled[source])
        for cache in self.caches.values():
            self.memory.copy_positions(cache, source, cache, target, count)

    def save_row(self, row: int, start: int = 0) -> SavedRow:
        """A copy of the row's state, its caches from position `start` on."""
        count = int(self.num_filled[row])
        tensors = {name: self.memory.read(buffer, row) for name, buffer in self.first_state.items()}
        tensors |= {name: self.memory.read_positions(cache, row, start, count) for name, cache in self.caches.items()}
        return SavedRow(tensors, start, count)

    def load_row(self, row: int, saved: SavedRow) -> None:
        """Put back what `save_row` gave, into any row whose caches hold the positions before it."""
        self.num_filled[row] = saved.num_filled
        for name, buffer in self.first_state.items():
            self.memory.write(buffer, row, saved.tensors[name])
        for name, cache in self.caches.items():
            self.memory.write_positions(cache, row, saved.start, saved.tensors[name])

    def _allocate(self, kind: str) -> Buffers:
        return {
            spec.name: self.memory.zeros((self.num_rows, *spec.row_shape(self.capacity)), spec.dtype)
            for spec in self.specs
            if spec.kind == kind
        }
