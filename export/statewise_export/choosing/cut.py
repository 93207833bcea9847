"""The exact end of top-k and of top-p in a vocabulary that is not sorted, as ONNX nodes.

The tokens are those of statewise.rules.sampling: by falling logit, of equal ones the lower id first. Halving a range of
logits leaves a few hundred tokens in which the end must lie, and only these are sorted. Every number follows from the
row's own values: the range of a row stands still as soon as that row's tokens are few, however many another row has.

Columns are `[row, 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from statewise_export.builder import GraphBuilder
from statewise_export.choosing.blocks import any_of, at, count, double, sum_of

FEW = 256
"""Tokens to sort: to halve them once more would take longer than sorting twice as many."""

RANGE = 42.0
"""Nats below the most probable token at which one with less than 2**-60 of its weight begins; all such are left out."""

MAX_HALVINGS = 24
"""Where more tokens than a few are still left, their logits are equal, or differ in the last bits."""


class Tokens(NamedTuple):
    """Tokens `[row, token]` to cut."""

    keys: str
    """Logits over temperature, float32; minus infinity for a token that does not count."""
    weights: str
    """Probabilities, float32; 0 for a token that does not count."""
    lowest: str
    """A column: no finite key is smaller."""


class Cut(NamedTuple):
    """The last token that is kept, two columns."""

    key: str
    token: str


class _Span(NamedTuple):
    """Range of the end: the tokens above `low` that are not above `high`. Columns, numbers in float64."""

    low: str
    high: str
    num_low: str
    """Tokens above `low`."""
    num_high: str
    before: str
    """Amount above `high`: less than the limit."""


def find_cut(op: GraphBuilder, tokens: Tokens, limit: str, block: int, *, by_count: bool) -> Cut:
    """The last token before which there are fewer tokens, or less weight, than the limit, a column of float64.

    block: tokens summed at once in float32, a divisor of their number.
    """
    span, limit = _narrow(op, tokens, limit, block, by_count=by_count)
    num_left = op.Cast(op.Sub(span.num_low, span.num_high), to=TensorProto.INT64)
    most = op.Max(op.ReduceMax(num_left, op.constant([0, 1]), keepdims=0), op.constant(1))
    left = op.Where(op.Greater(tokens.keys, span.high), op.constant(-np.inf, np.float32), tokens.keys)
    keys, ids = op.node("TopK", [left, op.Reshape(most, op.constant([1]))], 2, axis=1)
    each = op.GatherElements(tokens.weights, ids, axis=1) if not by_count else op.constant([[1]], np.float32)
    amounts = op.Expand(double(op, each), op.Shape(ids))
    before = op.Add(span.before, op.CumSum(amounts, op.constant(1), exclusive=1))
    # Behind a row's own tokens there are others, where another row has more.
    num_kept = op.Min(count(op, op.Less(before, limit)), num_left)
    last_kept = op.Max(num_kept, op.constant(1))
    return Cut(at(op, keys, last_kept), at(op, ids, last_kept))


def kept_weights(op: GraphBuilder, tokens: Tokens, cut: Cut, least: str) -> str:
    """The weights, 0 behind the cut and where they are smaller than `least`, a column."""
    ids = op.Range(op.constant(0), op.Gather(op.Shape(tokens.keys), op.constant(1)), op.constant(1))
    is_last = op.And(op.Equal(tokens.keys, cut.key), op.LessOrEqual(op.Unsqueeze(ids, op.constant([0])), cut.token))
    before_cut = op.Or(op.Greater(tokens.keys, cut.key), is_last)
    kept = op.And(before_cut, op.GreaterOrEqual(tokens.weights, least))
    return op.Mul(tokens.weights, op.Cast(kept, to=TensorProto.FLOAT))


def earlier(op: GraphBuilder, one: Cut, other: Cut) -> Cut:
    """The cut that keeps less."""
    is_tie = op.Equal(one.key, other.key)
    is_one = op.Or(op.Greater(one.key, other.key), op.And(is_tie, op.Less(one.token, other.token)))
    return Cut(op.Where(is_one, one.key, other.key), op.Where(is_one, one.token, other.token))


def _narrow(op: GraphBuilder, tokens: Tokens, limit: str, block: int, *, by_count: bool) -> tuple[_Span, str]:
    """A span of a few tokens, and the limit, no larger than the amount that there is."""

    def above(inner: GraphBuilder, key: str) -> tuple[str, str]:
        flags = inner.Cast(inner.Greater(tokens.keys, key), to=TensorProto.FLOAT)
        number = sum_of(inner, flags, block)
        return number, number if by_count else sum_of(inner, inner.Mul(flags, tokens.weights), block)

    def is_wide(inner: GraphBuilder, span: _Span) -> str:
        return inner.Greater(inner.Sub(span.num_low, span.num_high), inner.constant(FEW, np.float64))

    def halve(inner: GraphBuilder, state: Sequence[str]) -> tuple[str, Sequence[str]]:
        span = _Span(*state)
        width = inner.Sub(span.high, span.low)
        middle = inner.Add(span.low, inner.Mul(width, inner.constant(0.5, np.float32)))
        number, amount = above(inner, middle)
        is_before = inner.Less(amount, limit)
        is_open = is_wide(inner, span)
        lowers, raises = inner.And(is_open, is_before), inner.And(is_open, inner.Not(is_before))
        halved = _Span(
            low=inner.Where(raises, middle, span.low),
            high=inner.Where(lowers, middle, span.high),
            num_low=inner.Where(raises, number, span.num_low),
            num_high=inner.Where(lowers, number, span.num_high),
            before=inner.Where(lowers, amount, span.before),
        )
        return any_of(inner, is_wide(inner, halved)), halved

    high = op.ReduceMax(tokens.keys, op.constant([1]))
    below = (op.Sub(key, op.constant(by, np.float32)) for key, by in ((tokens.lowest, 1.0), (high, RANGE)))
    low = op.Max(*below)
    number, amount = above(op, low)
    limit = op.Min(limit, amount)
    nothing = op.Mul(number, op.constant(0, np.float64))
    return _Span(*op.repeat(MAX_HALVINGS, [low, high, number, nothing, nothing], halve)), limit
