"""Memory for state: NumPy arrays here, or a device's memory (device.py), with the same few operations on rows.

A cache has its positions along dimension 2, and is moved by positions: most of a row may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Buffer = Any
"""A buffer made by a memory: a NumPy array or a DeviceBuffer, with `shape`, `dtype` and `nbytes`."""


class View(NamedTuple):
    """Some rows of a buffer, as a binding takes them."""

    device: str
    dtype: np.dtype[Any]
    shape: Sequence[int]
    pointer: int


class Memory(Protocol):
    """Makes buffers, whose first dimension is rows, and moves rows."""

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """A new buffer."""

    def view(self, buffer: Buffer, rows: slice) -> View:
        """View of some rows. The buffer must outlive its views."""

    def fill(self, buffer: Buffer, values: Array) -> None:
        """Write a whole buffer, which stays where it is."""

    def copy(self, source: Buffer, source_rows: slice, target: Buffer, target_rows: slice) -> None:
        """Copy rows, between buffers or within one, where they do not overlap."""

    def copy_positions(self, source: Buffer, source_row: int, target: Buffer, target_row: int, count: int) -> None:
        """Copy a cache's row; the two buffers may have room for different numbers of positions."""

    def read(self, buffer: Buffer, row: int) -> Array:
        """A row, in host memory of its own."""

    def read_positions(self, buffer: Buffer, row: int, start: int, stop: int) -> Array:
        """Some positions of a cache's row, in host memory of its own."""

    def write(self, buffer: Buffer, row: int, values: Array) -> None:
        """Put back what `read` gave."""

    def write_positions(self, buffer: Buffer, row: int, start: int, values: Array) -> None:
        """Put what `read_positions` gave into a cache's row, from `start` on."""


class HostMemory:
    """NumPy arrays. Memory that nothing has touched costs nothing, so rows cost from their first use on.

    They cost their whole capacity then: with huge pages an item touches the room of many.
    """

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return np.zeros(shape, dtype)

    def view(self, buffer: Array, rows: slice) -> View:
        part = buffer[rows]
        return View("cpu", part.dtype, part.shape, part.ctypes.data)

    def fill(self, buffer: Array, values: Array) -> None:
        buffer[...] = values

    def copy(self, source: Array, source_rows: slice, target: Array, target_rows: slice) -> None:
        target[target_rows] = source[source_rows]

    def copy_positions(self, source: Array, source_row: int, target: Array, target_row: int, count: int) -> None:
        target[target_row, :, :count] = source[source_row, :, :count]

    def read(self, buffer: Array, row: int) -> Array:
        row_values: Array = buffer[row].copy()
        return row_values

    def read_positions(self, buffer: Array, row: int, start: int, stop: int) -> Array:
        return buffer[row, :, start:stop].copy()

    def write(self, buffer: Array, row: int, values: Array) -> None:
        buffer[row] = values

    def write_positions(self, buffer: Array, row: int, start: int, values: Array) -> None:
        buffer[row, :, start : start + values.shape[1]] = values


HOST = HostMemory()


def bind(bind_to: Any, name: str, view: View) -> None:
    """Bind an input or an output of a run to some rows; `bind_to` is the binding's method."""
    bind_to(name, view.device, 0, view.dtype, view.shape, view.pointer)


def host_view(array: Array) -> View:
    """A whole array, which must be C-contiguous and outlive the run that it is bound to."""
    return View("cpu", array.dtype, array.shape, array.ctypes.data)
