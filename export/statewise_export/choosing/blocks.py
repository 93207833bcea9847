"""Vocabularies in blocks, as ONNX nodes: the largest value, sums, a draw; and small expressions that draws share.

Columns are `[row, 1]`.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from statewise.rules.sampling import HEAD
from statewise_export.builder import GraphBuilder

BLOCK = 128
"""Tokens summed at once, about: a running sum over a whole vocabulary is slow."""


def add_argmax(op: GraphBuilder, logits: str, vocabulary_size: int) -> str:
    """The most probable token `[row]`, the first of several; first its block, as ArgMax is slow for its work."""
    block = divisor_of(vocabulary_size)
    if block is None:
        return op.ArgMax(logits, axis=1, keepdims=0)
    values = by_block(op, logits, block)
    index = op.ArgMax(op.ReduceMax(values, op.constant([2]), keepdims=0), axis=1)
    inside = op.ArgMax(op.GatherND(values, index, batch_dims=1), axis=1)
    return squeeze(op, op.Add(op.Mul(index, op.constant(block)), inside))


class Blocks:
    """Values `[row, block, token]` and their sums `[row, block]`, float64, in which no token is lost to rounding."""

    def __init__(self, op: GraphBuilder, values: str, size: int) -> None:
        self._values = values
        self._size = size
        self._sums = double(op, op.ReduceSum(values, op.constant([2]), keepdims=0))
        self._ends = op.CumSum(self._sums, op.constant(1))
        self.total = last(op, self._ends)

    def draw(self, op: GraphBuilder, target: str) -> str:
        """The first token `[row]` at which the running sum exceeds the target: first its block, then inside it."""
        block = inverse_cdf(op, self._ends, target)
        before = op.Sub(op.GatherElements(self._ends, block, axis=1), op.GatherElements(self._sums, block, axis=1))
        chosen = double(op, op.GatherND(self._values, block, batch_dims=1))
        rest = op.Max(op.Sub(target, before), op.constant(0, np.float64))
        index = inverse_cdf(op, op.CumSum(chosen, op.constant(1)), rest)
        return squeeze(op, op.Add(op.Mul(block, op.constant(self._size)), index))


def inverse_cdf(op: GraphBuilder, ends: str, target: str) -> str:
    """First index whose end exceeds the target; where rounding hides it, the last with any weight."""
    passed = count(op, op.LessOrEqual(ends, target))
    return op.Min(passed, count(op, op.Less(ends, last(op, ends))))


def any_of(op: GraphBuilder, flags: str) -> str:
    """Whether one flag is set."""
    # Through int32: booleans do not reduce.
    return op.Cast(op.ReduceMax(op.Cast(flags, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def squeeze(op: GraphBuilder, column: str) -> str:
    """A column as `[row]`."""
    return op.Squeeze(column, op.constant([1]))


def double(op: GraphBuilder, values: str) -> str:
    """Values as float64."""
    return op.Cast(values, to=TensorProto.DOUBLE)


def divisor_of(vocabulary_size: int) -> int | None:
    """Size of a block in tokens, where blocks of about BLOCK divide the vocabulary."""
    divisors = [size for size in range(BLOCK // 5, 5 * BLOCK) if vocabulary_size % size == 0]
    return min(divisors, key=lambda size: abs(np.log(size / BLOCK)), default=None)


def block_of(vocabulary_size: int) -> int:
    """The same, or BLOCK, where the vocabulary is padded to: that copies it."""
    # A sum rounds by where in memory its first value lies; that must not depend on the row's place in the batch.
    aligned = vocabulary_size >= HEAD and vocabulary_size % 16 == 0
    return (divisor_of(vocabulary_size) if aligned else None) or BLOCK


def by_block(op: GraphBuilder, values: str, block: int) -> str:
    """Values `[row, token]` as `[row, block, token]`."""
    return op.Reshape(values, op.constant([0, -1, block]))


def sum_of(op: GraphBuilder, values: str, block: int) -> str:
    """The sum, a column of float64, of float32 values `[row, token]`: first by block, in float32."""
    sums = op.ReduceSum(by_block(op, values, block), op.constant([2]), keepdims=0)
    return op.ReduceSum(double(op, sums), op.constant([1]))


def at(op: GraphBuilder, ends: str, count: str) -> str:
    """The running sum of the first so many values."""
    return op.GatherElements(ends, op.Sub(count, op.constant(1)), axis=1)


def first(op: GraphBuilder, values: str) -> str:
    """The first value of each row."""
    return op.Slice(values, op.constant([0]), op.constant([1]), op.constant([1]))


def last(op: GraphBuilder, values: str) -> str:
    """The last value of each row."""
    return op.Slice(values, op.constant([-1]), op.constant([2**62]), op.constant([1]))


def count(op: GraphBuilder, flags: str) -> str:
    """Count the set flags of each row."""
    return op.ReduceSum(op.Cast(flags, to=TensorProto.INT64), op.constant([1]), keepdims=1)
