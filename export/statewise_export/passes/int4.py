"""Matrix products with weights in 4 bits: ONNX Runtime's MatMulNBits, which also rounds the rows to 8 bits.

Blocks of 32 are the largest whose results do not depend on the batch: with 64 and 128 the kernels for one row and for
several round differently (ONNX Runtime 1.31.1).

Requires: products by constant matrices, recurrent operators taken apart before.
Ensures: every product with a matrix of MIN_NUMBERS or more rounds as `Int4` says; no other node changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise_export.builder import GraphBuilder
from statewise_export.passes.products import replace_products

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

BLOCK = 32
ACCURACY_LEVEL = 4
"""Rows in 8 bits, one scale per block; the other levels multiply in float32, several times slower."""
EXTREMES = (7.5, 8.0, 8.5, 9.0, 9.5)
"""Numbers that a block's largest may be scaled to; beyond 8 it is cut off, which leaves finer steps to the others."""


def int4_products(traced: TracedStep) -> TracedStep:
    """Replace large products by products with weights in 4 bits."""
    return replace_products(traced, Int4())


class Int4:
    """Whole numbers -8..7 with one scale for 32 of them."""

    def encode(self, matrix: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Numbers `[out, block, 16]`, two to a byte, and scales `[out, block]`."""
        inputs, outputs = matrix.shape
        padded = np.zeros((outputs, -(-inputs // BLOCK) * BLOCK), np.float32)
        padded[:, :inputs] = matrix.T
        numbers, scales = quantize_blocks(padded.reshape(outputs, -1, BLOCK))
        unsigned = (numbers + 8).astype(np.uint8)
        return {"int4": unsigned[..., 0::2] | (unsigned[..., 1::2] << 4), "scales": scales}

    def prepare(self, op: GraphBuilder, rows: str) -> tuple[str, ...]:
        """The rows, and 0 for each, or NaN where it is not finite: MatMulNBits would lose that."""
        sums = op.ReduceSum(op.Abs(rows), op.constant([-1]))
        return rows, op.Mul(sums, op.constant(0.0, np.float32))

    def multiply(
        self, op: GraphBuilder, prepared: tuple[str, ...], tensors: dict[str, str], shape: tuple[int, int]
    ) -> str:
        """The product in float32."""
        rows, not_finite = prepared
        product = op.MatMulNBits(
            rows,
            tensors["int4"],
            tensors["scales"],
            domain="com.microsoft",
            K=shape[0],
            N=shape[1],
            bits=4,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )
        return op.Add(product, not_finite)


def quantize_blocks(blocks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers -8..7 `[..., block, 32]` and scales `[..., block]` of small squared error.

    Each block's number of largest size is scaled to one after another of EXTREMES, with its sign, as -8 goes further
    than 7; each scale is then the least-squares one for the numbers that it gave.
    """
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=-1)
    best = np.ones_like(extreme)
    least = np.full_like(extreme, np.inf)
    for target in EXTREMES:
        scale = _fitted(blocks, -extreme / np.float32(target))
        error = np.square(_rounded(blocks, scale) * scale - blocks).sum(axis=-1, keepdims=True)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return _rounded(blocks, best), best[..., 0]


def _rounded(blocks: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(np.rint(blocks / np.where(scale == 0.0, np.float32(1.0), scale)), -8, 7)


def _fitted(blocks: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    numbers = _rounded(blocks, scale)
    squares = np.square(numbers).sum(axis=-1, keepdims=True)
    fitted: NDArray[np.float32] = (blocks * numbers).sum(axis=-1, keepdims=True) / np.maximum(squares, np.float32(1.0))
    return fitted
