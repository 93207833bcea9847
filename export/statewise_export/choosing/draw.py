"""The draw of statewise.rules.sampling as ONNX nodes: top-k, top-p, min-p, inverse CDF.

Columns are `[row, 1]`, masses float64. Only rows that need it go through the tail, whose work follows their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from statewise.rules.sampling import HEAD
from statewise_export.choosing.blocks import (
    Blocks,
    any_of,
    at,
    block_of,
    block_sums,
    by_block,
    double,
    first,
    last,
    squeeze,
    sum_of,
)
from statewise_export.choosing.tail import Rows, Tail, draw_from_head, end_in_head
from statewise_export.trace.builder import GraphBuilder

Take = Callable[[str], str]


class Rules(NamedTuple):
    """Names of the parameters, as columns."""

    temperature: str
    """float32, not 0."""
    top_k: str
    """int64, 0 for off."""
    top_p: str
    min_p: str


def add_draw(op: GraphBuilder, logits: str, rules: Rules, is_drawn: str, uniform: str, vocabulary_size: int) -> str:
    """Draw a token `[row]` from logits `[row, vocabulary]` and uniform numbers `[row, 1]`.

    What rows that are not `is_drawn`, a column of booleans, get is undefined.
    """
    scaled = op.Div(logits, rules.temperature)
    block = block_of(vocabulary_size)
    if vocabulary_size % block:
        scaled = op.Pad(scaled, op.constant([0, 0, 0, -vocabulary_size % block]), op.constant(-np.inf, np.float32))
    # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
    weights = op.Softmax(scaled, axis=1)
    in_blocks = by_block(op, weights, block)
    sums = double(op, block_sums(op, in_blocks))
    uniform = double(op, uniform)

    limits_p = op.Less(rules.top_p, op.constant(1, np.float32))
    limits_min = op.Greater(rules.min_p, op.constant(0, np.float32))
    restricts = op.Or(op.Greater(rules.top_k, op.constant(0)), op.Or(limits_p, limits_min))
    is_restricted, is_free = op.And(restricts, is_drawn), op.And(op.Not(restricts), is_drawn)

    def free(inner: GraphBuilder) -> list[str]:
        blocks = Blocks(inner, in_blocks, sums, block)
        target = inner.Mul(uniform, blocks.total)
        return [blocks.draw(inner, target, lambda values: double(inner, values))]

    def restricted(inner: GraphBuilder) -> list[str]:
        rows = Rows(weights, sum_of(inner, sums), uniform, *_head(inner, scaled, weights))
        token = _draw_restricted(inner, rows, rules, is_restricted, vocabulary_size)
        return [inner.Where(squeeze(inner, is_restricted), token, of_free)]

    nothing = squeeze(op, op.Cast(is_free, to=TensorProto.INT64))
    (of_free,) = op.when(any_of(op, is_free), free, lambda _: [nothing])
    (token,) = op.when(any_of(op, is_restricted), restricted, lambda _: [of_free])
    return token


def _head(op: GraphBuilder, scaled: str, weights: str) -> tuple[str, str, str, str]:
    _, order = op.node("TopK", [scaled, op.constant([HEAD])], 2, axis=1)
    of_head = op.GatherElements(weights, order, axis=1)
    ends = op.CumSum(double(op, of_head), op.constant(1))
    return order, of_head, ends, last(op, ends)


def _draw_restricted(op: GraphBuilder, rows: Rows, rules: Rules, is_restricted: str, vocabulary_size: int) -> str:
    """Draw among the tokens of the head, and behind it where a row keeps more than that."""
    top_k = op.Where(op.Less(rules.top_k, op.constant(vocabulary_size)), rules.top_k, op.constant(0))
    is_long = op.Greater(top_k, op.constant(HEAD))
    limits_k = op.Greater(top_k, op.constant(0))
    k = op.Where(limits_k, op.Min(top_k, op.constant(HEAD)), op.constant(HEAD))
    share = op.Mul(double(op, rules.top_p), op.Where(limits_k, at(op, rows.head_ends, k), rows.total))
    least = op.Mul(rules.min_p, first(op, rows.head_weights))
    end, goes_on = end_in_head(op, rows, k, share, least)
    token = draw_from_head(op, rows, op.Mul(rows.uniform, end))

    def beyond(inner: GraphBuilder, take: Take) -> str:
        tail = Tail(inner, Rows(*map(take, rows)), vocabulary_size)
        return tail.draw(inner, take(top_k), take(rules.top_p), take(share), take(least))

    # The share of rows whose k lies behind the head is found out there.
    is_beyond = op.And(op.Or(goes_on, is_long), is_restricted)
    return _in_rows(op, squeeze(op, is_beyond), token, beyond)


def _in_rows(op: GraphBuilder, flags: str, otherwise: str, compute: Callable[[GraphBuilder, Take], str]) -> str:
    """Compute `[row]` anew for the flagged rows alone; `compute` gets what takes these rows from a value."""

    def some(inner: GraphBuilder) -> list[str]:
        rows = inner.Squeeze(inner.NonZero(flags), inner.constant([0]))
        computed = compute(inner, lambda value: inner.Gather(value, rows, axis=0))
        return [inner.ScatterElements(otherwise, rows, computed, axis=0)]

    (result,) = op.when(any_of(op, flags), some, lambda _: [otherwise])
    return result
