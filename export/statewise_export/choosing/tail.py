"""The tokens that a row draws from: the head, in order, and behind it the tail, cut where top-k and top-p end.

Columns are `[row, 1]`, masses float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from statewise.rules.sampling import GRID, HEAD, NUM_GROUPS
from statewise_export.choosing.blocks import (
    Blocks,
    any_of,
    at,
    block_of,
    block_sums,
    by_block,
    count,
    double,
    inverse_cdf,
    last,
    squeeze,
    sum_of,
)
from statewise_export.trace.builder import GraphBuilder

_STEEP = 2.0**23
"""Slope that makes HardSigmoid a step: no float32 lies between 1 and where it has reached its end."""

_NEGLIGIBLE = 2.0**-60
"""Share of the head's last token below which a token is taken for impossible."""

_ROUNDING = 2.0**-22
"""By how much of itself a weight may differ from an equal one that was computed elsewhere."""


class Rows(NamedTuple):
    """What rows draw from; the head is their most probable tokens `[row, HEAD]`, in order."""

    weights: str
    total: str
    uniform: str
    head: str
    head_weights: str
    head_ends: str
    head_mass: str


def end_in_head(op: GraphBuilder, rows: Rows, k: str, share: str, least: str) -> tuple[str, str]:
    """The mass that a row keeps of its head, and whether it keeps more than the head."""
    before = op.Sub(rows.head_ends, double(op, rows.head_weights))
    inside = op.And(op.Less(before, share), op.Less(op.constant(np.arange(HEAD)[None]), k))
    kept = count(op, op.And(inside, op.GreaterOrEqual(rows.head_weights, least)))
    goes_on = op.And(op.Equal(kept, op.constant(HEAD)), op.Greater(share, rows.head_mass))
    return at(op, rows.head_ends, op.Max(kept, op.constant([[1]]))), goes_on


def draw_from_head(op: GraphBuilder, rows: Rows, target: str) -> str:
    """The token `[row]` of the head at which its running sum exceeds the target."""
    return squeeze(op, op.GatherElements(rows.head, inverse_cdf(op, rows.head_ends, target), axis=1))


class _Cut(NamedTuple):
    """Where that ends which top-k and top-p keep behind the head."""

    group: str
    """The group in which it does, a column."""
    part: str
    """What each of the group's tokens keeps, a column of float64."""
    above: str
    """Sums of the tail's weights before the group, `[row, block]`."""
    through: str
    """The same with the group."""


class Tail:
    """The tokens behind the head, in groups of about equal probability."""

    def __init__(self, op: GraphBuilder, rows: Rows, vocabulary_size: int) -> None:
        self._rows = rows
        self._num_tokens = vocabulary_size - HEAD
        self._block = block_of(vocabulary_size)
        self._end = op.Max(last(op, rows.head_weights), op.constant(_NEGLIGIBLE, np.float32))
        nothing = op.Mul(rows.head_weights, op.constant(0, np.float32))
        behind = op.ScatterElements(rows.weights, rows.head, nothing, axis=1)
        self._weights = by_block(op, behind, self._block)
        self._zeros = op.Mul(op.Cast(rows.total, to=TensorProto.INT64), op.constant(0))
        self._everything = block_sums(op, self._weights)

    def draw(self, op: GraphBuilder, top_k: str, top_p: str, share: str, least: str) -> str:
        """Draw a token `[row]`; share: the mass that top-p keeps, where top-k does not end behind the head."""
        head_mass = self._rows.head_mass
        cut, share = self._cut_by_count(op, top_k, double(op, top_p), share)
        cut = self._cut_by_mass(op, op.Less(top_p, op.constant(1, np.float32)), op.Sub(share, head_mass), cut)
        cut = self._without_unlikely(op, least, cut)
        end, goes_on = end_in_head(op, self._rows, op.constant([[HEAD]]), share, least)
        above, through = double(op, cut.above), double(op, cut.through)
        sums = op.Add(above, op.Mul(cut.part, op.Sub(through, above)))
        target = op.Mul(self._rows.uniform, op.Where(goes_on, op.Add(head_mass, sum_of(op, sums)), end))
        is_beyond = op.And(goes_on, op.GreaterOrEqual(target, head_mass))
        blocks = Blocks(op, self._weights, sums, self._block)
        token = blocks.draw(op, op.Sub(target, head_mass), lambda weights: self._kept(op, weights, cut, least))
        return op.Where(squeeze(op, is_beyond), token, draw_from_head(op, self._rows, target))

    def _cut_by_count(self, op: GraphBuilder, top_k: str, top_p: str, share: str) -> tuple[_Cut, str]:
        """The cut of top-k, and what top-p keeps before it."""
        is_long = op.Greater(top_k, op.constant(HEAD))
        lowest = op.Add(self._zeros, op.constant(NUM_GROUPS - 1))
        whole = _Cut(lowest, op.Add(double(op, self._zeros), _one(op)), self._everything, self._everything)

        def searched(inner: GraphBuilder) -> list[str]:
            k = double(inner, inner.Sub(top_k, inner.constant(HEAD)))
            group, before, after = self._search(inner, self._count_above, k, self._everything)
            # Tokens too unlikely to weigh anything count too.
            every = inner.constant(self._num_tokens, np.float64)
            num_through = inner.Where(inner.Equal(group, lowest), every, sum_of(inner, after))
            part = _part(inner, sum_of(inner, before), num_through, k)
            sums = [self._mass_above(inner, scale) for scale in self._scales(inner, group)]
            above, through = (sum_of(inner, each) for each in sums)
            mass = inner.Add(above, inner.Mul(part, inner.Sub(through, above)))
            left = inner.Mul(top_p, inner.Add(self._rows.head_mass, mass))
            return _where(inner, is_long, (group, part, *sums, left), (*whole, share))

        *cut, share = op.when(any_of(op, is_long), searched, lambda _: [*whole, share])
        return _Cut(*cut), share

    def _cut_by_mass(self, op: GraphBuilder, is_cut: str, limit: str, otherwise: _Cut) -> _Cut:
        """The cut where the tail's mass reaches the limit."""

        def searched(inner: GraphBuilder) -> list[str]:
            group, above, through = self._search(inner, self._mass_above, limit, self._everything)
            part = _part(inner, sum_of(inner, above), sum_of(inner, through), limit)
            return _where(inner, is_cut, (group, part, above, through), otherwise)

        return _Cut(*op.when(any_of(op, is_cut), searched, lambda _: otherwise))

    def _without_unlikely(self, op: GraphBuilder, least: str, cut: _Cut) -> _Cut:
        """The cut, its sums without the tokens that weigh less than `least`."""
        until_group, until_end = self._scales(op, cut.group)
        likely = self._scale_of(op, least)
        limits = op.Less(likely, until_end)

        def summed(inner: GraphBuilder) -> list[str]:
            sums = self._mass_above(inner, likely)
            ends_before = inner.Less(likely, until_group)
            return [inner.Where(ends_before, sums, cut.above), inner.Where(limits, sums, cut.through)]

        return _Cut(cut.group, cut.part, *op.when(any_of(op, limits), summed, lambda _: (cut.above, cut.through)))

    def _kept(self, op: GraphBuilder, weights: str, cut: _Cut, least: str) -> str:
        """What the cut leaves of some tokens' weights, float64."""
        likely = self._scale_of(op, least)
        is_above, is_through = (
            op.Greater(op.Mul(weights, op.Min(scale, likely)), op.constant(1, np.float32))
            for scale in self._scales(op, cut.group)
        )
        weights = double(op, weights)
        in_group = op.Where(is_through, op.Mul(weights, cut.part), op.constant(0, np.float64))
        return op.Where(is_above, weights, in_group)

    def _search(
        self, op: GraphBuilder, measure: Callable[[GraphBuilder, str], str], limit: str, everything: str
    ) -> tuple[str, str, str]:
        """The last group, a column, before which there is no more than the limit; sums before it, and with it."""
        group, before, after = self._zeros, op.Mul(everything, op.constant(0, np.float32)), everything
        for bit in reversed(range(NUM_GROUPS.bit_length() - 1)):
            later = op.Add(group, op.constant(2**bit))
            sums = measure(op, self._scale(op, later))
            is_before = op.LessOrEqual(sum_of(op, sums), limit)
            group, before = op.Where(is_before, later, group), op.Where(is_before, sums, before)
            after = op.Where(is_before, after, sums)
        return group, before, after

    def _count_above(self, op: GraphBuilder, scale: str) -> str:
        """How many of each block's weights are above 1 when scaled."""
        return block_sums(op, op.HardSigmoid(self._scaled(op, scale), alpha=_STEEP, beta=-_STEEP))

    def _mass_above(self, op: GraphBuilder, scale: str) -> str:
        """The sum of those weights, not scaled."""
        above = op.ThresholdedRelu(self._scaled(op, scale), alpha=1.0)
        return op.Div(block_sums(op, above), scale)

    def _scaled(self, op: GraphBuilder, scale: str) -> str:
        return op.Mul(self._weights, op.Unsqueeze(scale, op.constant([2])))

    def _scales(self, op: GraphBuilder, group: str) -> tuple[str, str]:
        """The scales for what is before the group, and for that with it."""
        return self._scale(op, group), self._scale(op, op.Add(group, op.constant(1)))

    def _scale_of(self, op: GraphBuilder, least: str) -> str:
        """What makes weights no less than these, and no others, larger than 1; a column."""
        return op.Div(op.constant(1 + _ROUNDING, np.float32), least)

    def _scale(self, op: GraphBuilder, group: str) -> str:
        """What makes weights above the group, and no others, larger than 1; a column."""
        # Above the first group there is nothing, above the end everything; rounding must not change that.
        factors = np.array([0.5, *np.exp(GRID * np.arange(1, NUM_GROUPS)), 1 / _NEGLIGIBLE])
        return op.Div(op.Gather(op.constant(factors, np.float32), group, axis=0), self._end)


def _part(op: GraphBuilder, before: str, after: str, limit: str) -> str:
    """The part of what lies between that is before the limit, from 0 to 1."""
    least = op.constant(np.finfo(np.float64).tiny, np.float64)
    part = op.Div(op.Sub(limit, before), op.Max(op.Sub(after, before), least))
    return op.Min(op.Max(part, op.constant(0, np.float64)), _one(op))


def _where(op: GraphBuilder, flags: str, values: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    return [op.Where(flags, value, other) for value, other in zip(values, otherwise, strict=True)]


def _one(op: GraphBuilder) -> str:
    return op.constant(1, np.float64)
