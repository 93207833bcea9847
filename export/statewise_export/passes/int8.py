"""Matrix products in 8 bits: signed weights with a scale per output, activations with a scale per row.

Stock dynamic quantization takes one scale for the whole batch, so that a row's result depends on who shares the
batch; with a scale of its own a row is the same bit for bit in any batch. MatMulNBits with 8 bits and accuracy level 4
does that too and needs a tenth less time at one row, but more than twice as much at 16 (768x3072, one core, us at
1/16/64 rows: float32 115/385/1551, MatMulInteger 40/130/493, MatMulNBits 35/250/974).

Requires: products by constant matrices, recurrent operators taken apart before.
Ensures: every product with a matrix of MIN_NUMBERS or more rounds as `Int8` says; no other node changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise_export.builder import GraphBuilder
from statewise_export.passes.products import replace_products

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

LARGEST = 127
ZERO_POINT = 128
TINY = 1e-30
"""Stands for the largest number of a row of zeros, by which nothing can be divided."""


def int8_products(traced: TracedStep) -> TracedStep:
    """Replace large products by products in 8 bits."""
    return replace_products(traced, Int8())


class Int8:
    """`x @ W = (q @ Q) * row scale * output scale`, q and Q being whole numbers up to 127."""

    def encode(self, matrix: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Numbers `[in, out]` and scales `[out]`, those of rows of size 1."""
        scales = np.maximum(np.abs(matrix).max(axis=0), np.float32(TINY)) / np.float32(LARGEST)
        return {"int8": np.rint(matrix / scales).astype(np.int8), "scales": scales / np.float32(LARGEST)}

    def prepare(self, op: GraphBuilder, rows: str) -> tuple[str, ...]:
        """Whole numbers `[..., in]`, uint8 around 128, and largest sizes `[..., 1]`, NaN where the row has one."""
        axis, sizes = op.constant([-1]), op.Abs(rows)
        # ReduceMax passes over NaN, a sum does not; without it a row that is not finite would look sound.
        not_finite = op.Mul(op.ReduceSum(sizes, axis), op.constant(0.0, np.float32))
        largest = op.Max(op.ReduceMax(sizes, axis), not_finite, op.constant(TINY, np.float32))
        scaled = op.Mul(rows, op.Div(op.constant(LARGEST, np.float32), largest))
        numbers = op.QuantizeLinear(scaled, op.constant(1.0, np.float32), op.constant(ZERO_POINT, np.uint8))
        return numbers, largest

    def multiply(
        self, op: GraphBuilder, prepared: tuple[str, ...], tensors: dict[str, str], shape: tuple[int, int]
    ) -> str:
        """The product in float32; the operator scales by output, and has but one scale for all rows."""
        numbers, largest = prepared
        product = op.MatMulIntegerToFloat(
            numbers,
            tensors["int8"],
            op.constant(1.0, np.float32),
            tensors["scales"],
            op.constant(ZERO_POINT, np.uint8),
            domain="com.microsoft",
        )
        return op.Mul(product, largest)
