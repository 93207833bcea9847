"""The draw of statewise.sampling as ONNX nodes: top-k, top-p, min-p, inverse CDF.

Columns are `[row, 1]`, masses float64. Only rows that need it go through the tail, whose work follows their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from export.builder import GraphBuilder
from statewise.sampling import GRID, HEAD, NUM_GROUPS

BLOCK = 128
"""Tokens summed at once, about: a running sum over a whole vocabulary is slow."""

_STEEP = 2.0**23
"""Slope that makes HardSigmoid a step: no float32 lies between 1 and where it has reached its end."""

_NEGLIGIBLE = 2.0**-60
"""Share of the head's last token below which a token is taken for impossible."""

_ROUNDING = 2.0**-21
"""By how much of itself a weight may differ from an equal one that was computed elsewhere."""

Take = Callable[[str], str]


class Rules(NamedTuple):
    """Names of the parameters, as columns."""

    temperature: str
    """float32, not 0."""
    top_k: str
    """int64, 0 for off."""
    top_p: str
    min_p: str


def add_argmax(op: GraphBuilder, logits: str, vocabulary_size: int) -> str:
    """The most probable token `[row]`, the first of several; first its block, as ArgMax is slow for its work."""
    block = _divisor(vocabulary_size)
    if block is None:
        return op.ArgMax(logits, axis=1, keepdims=0)
    values = _by_block(op, logits, block)
    index = op.ArgMax(op.ReduceMax(values, op.constant([2]), keepdims=0), axis=1)
    inside = op.ArgMax(op.GatherND(values, index, batch_dims=1), axis=1)
    return squeeze(op, op.Add(op.Mul(index, op.constant(block)), inside))


def add_draw(op: GraphBuilder, logits: str, rules: Rules, is_drawn: str, uniform: str, vocabulary_size: int) -> str:
    """Draw a token `[row]` from logits `[row, vocabulary]` and uniform numbers `[row, 1]`.

    What rows that are not `is_drawn`, a column of booleans, get is undefined.
    """
    scaled = op.Div(logits, rules.temperature)
    block = _block_of(vocabulary_size)
    if vocabulary_size % block:
        scaled = op.Pad(scaled, op.constant([0, 0, 0, -vocabulary_size % block]), op.constant(-np.inf, np.float32))
    # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
    weights = op.Softmax(scaled, axis=1)
    by_block = _by_block(op, weights, block)
    blocks = _Blocks(op, by_block, _block_sums(op, by_block), block)
    uniform = double(op, uniform)
    unrestricted = blocks.draw(op, op.Mul(uniform, blocks.total), lambda values: double(op, values))

    limits_p = op.Less(rules.top_p, op.constant(1, np.float32))
    limits_min = op.Greater(rules.min_p, op.constant(0, np.float32))
    restricts = op.Or(op.Greater(rules.top_k, op.constant(0)), op.Or(limits_p, limits_min))
    is_restricted = op.And(restricts, is_drawn)

    def restricted(inner: GraphBuilder) -> list[str]:
        rows = _Rows(weights, blocks.total, uniform, *_head(inner, scaled, weights))
        token = _draw_restricted(inner, rows, rules, is_restricted, vocabulary_size)
        return [inner.Where(squeeze(inner, is_restricted), token, unrestricted)]

    (token,) = op.when(any_of(op, is_restricted), restricted, lambda _: [unrestricted])
    return token


class _Rows(NamedTuple):
    """What rows draw from; the head is their most probable tokens `[row, HEAD]`, in order."""

    weights: str
    total: str
    uniform: str
    head: str
    head_weights: str
    head_ends: str
    head_mass: str


def _head(op: GraphBuilder, scaled: str, weights: str) -> tuple[str, str, str, str]:
    _, order = op.node("TopK", [scaled, op.constant([HEAD])], 2, axis=1)
    of_head = op.GatherElements(weights, order, axis=1)
    ends = op.CumSum(double(op, of_head), op.constant(1))
    return order, of_head, ends, _last(op, ends)


def _draw_restricted(op: GraphBuilder, rows: _Rows, rules: Rules, is_restricted: str, vocabulary_size: int) -> str:
    """Draw among the tokens of the head, and behind it where a row keeps more than that."""
    top_k = op.Where(op.Less(rules.top_k, op.constant(vocabulary_size)), rules.top_k, op.constant(0))
    is_long = op.Greater(top_k, op.constant(HEAD))
    limits_k = op.Greater(top_k, op.constant(0))
    k = op.Where(limits_k, op.Min(top_k, op.constant(HEAD)), op.constant(HEAD))
    share = op.Mul(double(op, rules.top_p), op.Where(limits_k, _at(op, rows.head_ends, k), rows.total))
    least = op.Mul(rules.min_p, _first(op, rows.head_weights))
    end, goes_on = _end_in_head(op, rows, k, share, least)
    token = _draw_from_head(op, rows, op.Mul(rows.uniform, end))

    def beyond(inner: GraphBuilder, take: Take) -> str:
        tail = _Tail(inner, _Rows(*map(take, rows)), vocabulary_size)
        return tail.draw(inner, take(top_k), take(rules.top_p), take(share), take(least))

    # The share of rows whose k lies behind the head is found out there.
    is_beyond = op.And(op.Or(goes_on, is_long), is_restricted)
    return _in_rows(op, squeeze(op, is_beyond), token, beyond)


def _end_in_head(op: GraphBuilder, rows: _Rows, k: str, share: str, least: str) -> tuple[str, str]:
    """The mass that a row keeps of its head, and whether it keeps more than the head."""
    before = op.Sub(rows.head_ends, double(op, rows.head_weights))
    inside = op.And(op.Less(before, share), op.Less(op.constant(np.arange(HEAD)[None]), k))
    kept = _count(op, op.And(inside, op.GreaterOrEqual(rows.head_weights, least)))
    goes_on = op.And(op.Equal(kept, op.constant(HEAD)), op.Greater(share, rows.head_mass))
    return _at(op, rows.head_ends, op.Max(kept, op.constant([[1]]))), goes_on


def _draw_from_head(op: GraphBuilder, rows: _Rows, target: str) -> str:
    return squeeze(op, op.GatherElements(rows.head, _inverse_cdf(op, rows.head_ends, target), axis=1))


class _Cut(NamedTuple):
    """Where that ends which top-k and top-p keep behind the head."""

    group: str
    """The group in which it does, a column."""
    part: str
    """What each of the group's tokens keeps, a column of float64."""
    above: str
    """Sums of the tail's weights before the group, float64 `[row, block]`."""
    through: str
    """The same with the group."""


class _Tail:
    """The tokens behind the head, in groups of about equal probability."""

    def __init__(self, op: GraphBuilder, rows: _Rows, vocabulary_size: int) -> None:
        self._rows = rows
        self._num_tokens = vocabulary_size - HEAD
        self._block = _block_of(vocabulary_size)
        self._end = op.Max(_last(op, rows.head_weights), op.constant(_NEGLIGIBLE, np.float32))
        nothing = op.Mul(rows.head_weights, op.constant(0, np.float32))
        behind = op.ScatterElements(rows.weights, rows.head, nothing, axis=1)
        self._weights = _by_block(op, behind, self._block)
        self._first = op.Mul(op.Cast(rows.total, to=TensorProto.INT64), op.constant(0))
        self._everything = _block_sums(op, self._weights)

    def draw(self, op: GraphBuilder, top_k: str, top_p: str, share: str, least: str) -> str:
        """Draw a token `[row]`; share: the mass that top-p keeps, where top-k does not end behind the head."""
        head_mass = self._rows.head_mass
        cut, share = self._cut_by_count(op, top_k, double(op, top_p), share)
        cut = self._cut_by_mass(op, op.Less(top_p, op.constant(1, np.float32)), op.Sub(share, head_mass), cut)
        cut = self._without_unlikely(op, least, cut)
        end, goes_on = _end_in_head(op, self._rows, op.constant([[HEAD]]), share, least)
        sums = op.Add(cut.above, op.Mul(cut.part, op.Sub(cut.through, cut.above)))
        target = op.Mul(self._rows.uniform, op.Where(goes_on, op.Add(head_mass, _sum(op, sums)), end))
        is_beyond = op.And(goes_on, op.GreaterOrEqual(target, head_mass))
        blocks = _Blocks(op, self._weights, sums, self._block)
        token = blocks.draw(op, op.Sub(target, head_mass), lambda weights: self._kept(op, weights, cut, least))
        return op.Where(squeeze(op, is_beyond), token, _draw_from_head(op, self._rows, target))

    def _cut_by_count(self, op: GraphBuilder, top_k: str, top_p: str, share: str) -> tuple[_Cut, str]:
        """The cut of top-k, and what top-p keeps before it."""
        is_long = op.Greater(top_k, op.constant(HEAD))
        last = op.Add(self._first, op.constant(NUM_GROUPS - 1))
        whole = _Cut(last, op.Add(double(op, self._first), _one(op)), self._everything, self._everything)

        def searched(inner: GraphBuilder) -> list[str]:
            k = double(inner, inner.Sub(top_k, inner.constant(HEAD)))
            group, before, after = self._search(inner, self._count_above, k, self._everything)
            # Tokens too unlikely to weigh anything count too.
            every = inner.constant(self._num_tokens, np.float64)
            num_through = inner.Where(inner.Equal(group, last), every, _sum(inner, after))
            part = _part(inner, _sum(inner, before), num_through, k)
            sums = [self._mass_above(inner, scale) for scale in self._scales(inner, group)]
            above, through = (_sum(inner, each) for each in sums)
            mass = inner.Add(above, inner.Mul(part, inner.Sub(through, above)))
            left = inner.Mul(top_p, inner.Add(self._rows.head_mass, mass))
            return _where(inner, is_long, (group, part, *sums, left), (*whole, share))

        *cut, share = op.when(any_of(op, is_long), searched, lambda _: [*whole, share])
        return _Cut(*cut), share

    def _cut_by_mass(self, op: GraphBuilder, is_cut: str, limit: str, otherwise: _Cut) -> _Cut:
        """The cut where the tail's mass reaches the limit."""

        def searched(inner: GraphBuilder) -> list[str]:
            group, above, through = self._search(inner, self._mass_above, limit, self._everything)
            part = _part(inner, _sum(inner, above), _sum(inner, through), limit)
            return _where(inner, is_cut, (group, part, above, through), otherwise)

        return _Cut(*op.when(any_of(op, is_cut), searched, lambda _: otherwise))

    def _without_unlikely(self, op: GraphBuilder, least: str, cut: _Cut) -> _Cut:
        """The cut, its sums without the tokens that weigh less than `least`."""

        def summed(inner: GraphBuilder) -> list[str]:
            return [self._mass_above(inner, scale) for scale in self._scales(inner, cut.group, least)]

        is_asked = any_of(op, op.Greater(least, op.constant(0, np.float32)))
        return _Cut(cut.group, cut.part, *op.when(is_asked, summed, lambda _: [cut.above, cut.through]))

    def _kept(self, op: GraphBuilder, weights: str, cut: _Cut, least: str) -> str:
        """What the cut leaves of some tokens' weights, float64."""
        is_above, is_through = (
            op.Greater(op.Mul(weights, scale), op.constant(1, np.float32))
            for scale in self._scales(op, cut.group, least)
        )
        weights = double(op, weights)
        in_group = op.Where(is_through, op.Mul(weights, cut.part), op.constant(0, np.float64))
        return op.Where(is_above, weights, in_group)

    def _search(
        self, op: GraphBuilder, measure: Callable[[GraphBuilder, str], str], limit: str, everything: str
    ) -> tuple[str, str, str]:
        """The last group, a column, before which there is no more than the limit; sums before it, and with it."""
        group, before, after = self._first, op.Mul(everything, op.constant(0, np.float64)), everything
        for bit in reversed(range(NUM_GROUPS.bit_length() - 1)):
            later = op.Add(group, op.constant(2**bit))
            sums = measure(op, self._scale(op, later))
            is_before = op.LessOrEqual(_sum(op, sums), limit)
            group, before = op.Where(is_before, later, group), op.Where(is_before, sums, before)
            after = op.Where(is_before, after, sums)
        return group, before, after

    def _count_above(self, op: GraphBuilder, scale: str) -> str:
        """How many of each block's weights are above 1 when scaled."""
        return _block_sums(op, op.HardSigmoid(self._scaled(op, scale), alpha=_STEEP, beta=-_STEEP))

    def _mass_above(self, op: GraphBuilder, scale: str) -> str:
        """The sum of those weights, not scaled."""
        above = op.ThresholdedRelu(self._scaled(op, scale), alpha=1.0)
        return op.Div(_block_sums(op, above), double(op, scale))

    def _scaled(self, op: GraphBuilder, scale: str) -> str:
        return op.Mul(self._weights, op.Unsqueeze(scale, op.constant([2])))

    def _scales(self, op: GraphBuilder, group: str, least: str | None = None) -> list[str]:
        """The scales for what is before the group, and for that with it; weights below `least` not among them."""
        scales = [self._scale(op, group), self._scale(op, op.Add(group, op.constant(1)))]
        if least is None:
            return scales
        likely = op.Div(op.constant(1 + _ROUNDING, np.float32), least)
        return [op.Min(scale, likely) for scale in scales]

    def _scale(self, op: GraphBuilder, group: str) -> str:
        """What makes weights above the group, and no others, larger than 1; a column."""
        # Above the first group there is nothing, above the end everything; rounding must not change that.
        factors = np.array([0.5, *np.exp(GRID * np.arange(1, NUM_GROUPS)), 1 / _NEGLIGIBLE])
        return op.Div(op.Gather(op.constant(factors, np.float32), group, axis=0), self._end)


class _Blocks:
    """Values `[row, block, token]` and their sums `[row, block]`, float64, in which no token is lost to rounding."""

    def __init__(self, op: GraphBuilder, values: str, sums: str, size: int) -> None:
        self._values = values
        self._size = size
        self._sums = sums
        self._ends = op.CumSum(sums, op.constant(1))
        self.total = _last(op, self._ends)

    def draw(self, op: GraphBuilder, target: str, kept: Callable[[str], str]) -> str:
        """The first token `[row]` at which the running sum exceeds the target: first its block, then inside it.

        kept: from a block's values `[row, token]` to those that its sum is of, float64.
        """
        block = _inverse_cdf(op, self._ends, target)
        before = op.Sub(op.GatherElements(self._ends, block, axis=1), op.GatherElements(self._sums, block, axis=1))
        chosen = kept(op.GatherND(self._values, block, batch_dims=1))
        rest = op.Max(op.Sub(target, before), op.constant(0, np.float64))
        index = _inverse_cdf(op, op.CumSum(chosen, op.constant(1)), rest)
        return squeeze(op, op.Add(op.Mul(block, op.constant(self._size)), index))


def _in_rows(op: GraphBuilder, flags: str, otherwise: str, compute: Callable[[GraphBuilder, Take], str]) -> str:
    """Compute `[row]` anew for the flagged rows alone; `compute` gets what takes these rows from a value."""

    def some(inner: GraphBuilder) -> list[str]:
        rows = inner.Squeeze(inner.NonZero(flags), inner.constant([0]))
        computed = compute(inner, lambda value: inner.Gather(value, rows, axis=0))
        return [inner.ScatterElements(otherwise, rows, computed, axis=0)]

    (result,) = op.when(any_of(op, flags), some, lambda _: [otherwise])
    return result


def _inverse_cdf(op: GraphBuilder, ends: str, target: str) -> str:
    """First index whose end exceeds the target; where rounding hides it, the last with any weight."""
    passed = _count(op, op.LessOrEqual(ends, target))
    return op.Min(passed, _count(op, op.Less(ends, _last(op, ends))))


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


def _divisor(vocabulary_size: int) -> int | None:
    """How many tokens make a block, where blocks of about BLOCK divide the vocabulary."""
    divisors = [size for size in range(BLOCK // 5, 5 * BLOCK) if vocabulary_size % size == 0]
    return min(divisors, key=lambda size: abs(np.log(size / BLOCK)), default=None)


def _block_of(vocabulary_size: int) -> int:
    """The same, or BLOCK, where the vocabulary is padded to: that copies it."""
    # A sum rounds by where in memory its first value lies; that must not depend on the row's place in the batch.
    aligned = vocabulary_size >= HEAD and vocabulary_size % 16 == 0
    return (_divisor(vocabulary_size) if aligned else None) or BLOCK


def _by_block(op: GraphBuilder, values: str, block: int) -> str:
    return op.Reshape(values, op.constant([0, -1, block]))


def _block_sums(op: GraphBuilder, values: str) -> str:
    return double(op, op.ReduceSum(values, op.constant([2]), keepdims=0))


def _sum(op: GraphBuilder, sums: str) -> str:
    """The sum, as a column, of values `[row, block]`."""
    return op.ReduceSum(sums, op.constant([1]))


def _part(op: GraphBuilder, before: str, after: str, limit: str) -> str:
    """The part of what lies between that is before the limit, from 0 to 1."""
    least = op.constant(np.finfo(np.float64).tiny, np.float64)
    part = op.Div(op.Sub(limit, before), op.Max(op.Sub(after, before), least))
    return op.Min(op.Max(part, op.constant(0, np.float64)), _one(op))


def _where(op: GraphBuilder, flags: str, values: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    return [op.Where(flags, value, other) for value, other in zip(values, otherwise, strict=True)]


def _one(op: GraphBuilder) -> str:
    return op.constant(1, np.float64)


def _at(op: GraphBuilder, ends: str, count: str) -> str:
    return op.GatherElements(ends, op.Sub(count, op.constant(1)), axis=1)


def _first(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([0]), op.constant([1]), op.constant([1]))


def _last(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([-1]), op.constant([2**62]), op.constant([1]))


def _count(op: GraphBuilder, flags: str) -> str:
    return op.ReduceSum(op.Cast(flags, to=TensorProto.INT64), op.constant([1]), keepdims=1)
