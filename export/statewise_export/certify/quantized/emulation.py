"""Quantized products, stated once more in NumPy, apart from the passes that write them.

int8: whole numbers up to 127 with a scale for each output; rows are rounded to whole numbers up to 127 of their largest
size. int4: whole numbers -8..7 with a scale for each block of 32; rows are rounded block by block in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LARGEST = 127
BLOCK = 32
NIBBLES = (-8, 7)
RANGES = (7.5, 8.0, 8.5, 9.0, 9.5)
"""Numbers that a block's largest may stand for before it is cut off at -8 or 7."""
TINY = np.float32(1e-30)
WORSE = 1e-3
"""Relative growth of a block's squared error by which another of RANGES may have been chosen, at a near tie."""


class Emulation(ABC):
    """The rounding of one precision: of a float32 matrix `[in, out]`, and of the rows multiplied with it."""

    @abstractmethod
    def problem(self, matrix: Array, tensors: Iterable[Array]) -> str | None:
        """Compare the tensors of a graph with the matrix that they stand for; None where they are right."""

    @abstractmethod
    def products(self, matrix: Array, tensors: Iterable[Array], rows: Array) -> list[Array]:
        """Return products of rows `[row, in]` with the tensors' matrix, each of which a kernel may give."""


class Int8(Emulation):
    """Per-channel symmetric weights, dynamic activations by row."""

    def problem(self, matrix: Array, tensors: Iterable[Array]) -> str | None:
        """Numbers must be the same, scales the same to the last place."""
        numbers, scales = _only(tensors, np.int8, 2), _only(tensors, np.float32, 1)
        if numbers is None or scales is None:
            return "holds no int8 numbers with a scale for each output"
        unit = np.maximum(np.abs(matrix).max(axis=0), TINY) / np.float32(LARGEST)
        if not np.allclose(scales, unit / np.float32(LARGEST), rtol=1e-6, atol=0.0):
            return f"scales are off by up to {_relative(scales, unit / np.float32(LARGEST)):.2%}"
        return _differing(numbers, np.rint(matrix / unit))

    def products(self, matrix: Array, tensors: Iterable[Array], rows: Array) -> list[Array]:
        """Exact sums of whole numbers, times both scales."""
        numbers, scales = _only(tensors, np.int8, 2), _only(tensors, np.float32, 1)
        assert numbers is not None
        assert scales is not None
        size = np.maximum(np.abs(rows).max(axis=1, keepdims=True), TINY)
        rounded = np.rint(rows * (np.float32(LARGEST) / size))
        # float64 holds these sums exactly, and its products are fast.
        return [rounded.astype(np.float64) @ numbers.astype(np.float64) * scales * size]


class Int4(Emulation):
    """Blocks of 32 weights, activations in blocks of 32."""

    def problem(self, matrix: Array, tensors: Iterable[Array]) -> str | None:
        """Numbers must round the matrix by their scales, which must be as good as the best of RANGES."""
        numbers, scales = _unpacked(tensors)
        if numbers is None or scales is None:
            return "holds no 4-bit numbers with a scale for each block"
        blocks = _blocks(matrix)
        if numbers.shape != blocks.shape:
            return f"holds {numbers.shape} numbers for a matrix of {matrix.shape}"
        exact = blocks / np.where(scales == 0.0, np.float32(1.0), scales)[..., None]
        wrong = np.abs(numbers - np.clip(exact, *NIBBLES)) > 0.5 + 1e-3
        if wrong.any():
            return f"{wrong.mean():.1%} of the numbers are not the nearest"
        error, least = _error(blocks, numbers, scales), _least_error(blocks)
        worse = error > least * (1 + WORSE) + np.finfo(np.float32).tiny
        return f"scales of {worse.mean():.1%} of the blocks are not the best" if worse.any() else None

    def products(self, matrix: Array, tensors: Iterable[Array], rows: Array) -> list[Array]:
        """With activations in 8 bits, as accuracy level 4 allows, or in full, as kernels may that have no such path."""
        numbers, scales = _unpacked(tensors)
        assert numbers is not None
        assert scales is not None
        weights = (numbers * scales[..., None]).reshape(len(numbers), -1).astype(np.float64)
        padded = np.pad(rows, ((0, 0), (0, weights.shape[1] - rows.shape[1])))
        parts = padded.reshape(len(rows), -1, BLOCK)
        size = np.maximum(np.abs(parts).max(axis=-1, keepdims=True), TINY) / np.float32(LARGEST)
        rounded = (np.rint(parts / size) * size).reshape(padded.shape)
        return [activations.astype(np.float64) @ weights.T for activations in (rounded, padded)]


EMULATIONS: dict[str, Emulation] = {"int8": Int8(), "int4": Int4()}
"""By the variant's precision."""


def _only(tensors: Iterable[Array], dtype: Any, ndim: int) -> Array | None:
    """The one tensor of this type and rank; None where there is another number of them."""
    found = [tensor for tensor in tensors if tensor.dtype == dtype and tensor.ndim == ndim]
    return found[0] if len(found) == 1 else None


def _unpacked(tensors: Iterable[Array]) -> tuple[Array | None, Array | None]:
    """Numbers `[out, block, 32]` and scales `[out, block]`."""
    packed, scales = _only(tensors, np.uint8, 3), _only(tensors, np.float32, 2)
    if packed is None or scales is None:
        return None, None
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32)
    return pairs.reshape(*packed.shape[:2], -1) - 8, scales


def _blocks(matrix: Array) -> Array:
    """The matrix by output and block, filled up with zeros."""
    inputs, outputs = matrix.shape
    return np.pad(matrix.T, ((0, 0), (0, -inputs % BLOCK))).reshape(outputs, -1, BLOCK)


def _error(blocks: Array, numbers: Array, scales: Array) -> Array:
    return np.asarray(np.square(numbers * scales[..., None] - blocks, dtype=np.float64).sum(axis=-1))


def _least_error(blocks: Array) -> Array:
    """Squared error of each block under the best scale: fitted to the numbers that one of RANGES makes.

    In float32, as by design a block's largest number lies halfway between two whole ones.
    """
    place = np.abs(blocks).argmax(axis=-1)[..., None]
    largest = np.take_along_axis(blocks, place, axis=-1)[..., 0]
    least = np.full(largest.shape, np.inf)
    for end in RANGES:
        scales = largest / np.float32(-end)
        numbers = _nearest(blocks, scales)
        scales = (blocks * numbers).sum(axis=-1) / np.maximum(np.square(numbers).sum(axis=-1), np.float32(1.0))
        least = np.minimum(least, _error(blocks, _nearest(blocks, scales), scales))
    return least


def _nearest(blocks: Array, scales: Array) -> Array:
    return np.clip(np.rint(blocks / np.where(scales == 0.0, np.float32(1.0), scales)[..., None]), *NIBBLES)


def _differing(actual: Array, expected: Array) -> str | None:
    if actual.shape != expected.shape:
        return f"holds numbers of shape {actual.shape} for a matrix of {expected.shape}"
    share = float(np.mean(actual != expected))
    return f"{share:.1%} of the numbers differ" if share else None


def _relative(actual: Array, expected: Array) -> float:
    return float(np.abs(actual / expected - 1).max()) if actual.shape == expected.shape else float("inf")
