"""The draw of statewise.rules.sampling as ONNX nodes: top-k, top-p, min-p, inverse CDF.

Columns are `[row, 1]`, masses float64. A row that keeps only tokens of the head, the HEAD most probable ones, is drawn
from the sorted head. The other rows alone go through the search for the end of top-k or top-p; its work follows their
number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from statewise.rules.sampling import HEAD
from statewise_export.builder import GraphBuilder
from statewise_export.choosing.blocks import (
    Blocks,
    any_of,
    at,
    block_of,
    by_block,
    count,
    double,
    first,
    inverse_cdf,
    last,
    squeeze,
    sum_of,
)
from statewise_export.choosing.cut import Cut, Tokens, earlier, find_cut, kept_weights

Take = Callable[[str], str]

_NEGLIGIBLE = 2.0**-60
"""Probability of the head's last token below which those behind it are taken for impossible."""


class Rules(NamedTuple):
    """Names of the parameters, as columns."""

    temperature: str
    """float32, not 0."""
    top_k: str
    """int64, 0 for off."""
    top_p: str
    min_p: str


class _Rows(NamedTuple):
    """Distribution that rows draw from; the head is their most probable tokens `[row, HEAD]`, in order."""

    tokens: Tokens
    uniform: str
    head: str
    head_weights: str
    head_ends: str

    def take(self, take: Take) -> _Rows:
        """Some of the rows."""
        return _Rows(Tokens(*map(take, self.tokens)), *map(take, self[1:]))


def add_draw(op: GraphBuilder, logits: str, rules: Rules, is_drawn: str, uniform: str, vocabulary_size: int) -> str:
    """Draw a token `[row]` from logits `[row, vocabulary]` and uniform numbers `[row, 1]`.

    What rows that are not `is_drawn`, a column of booleans, get is undefined.
    """
    scaled = unpadded = op.Div(logits, rules.temperature)
    block = block_of(vocabulary_size)
    if vocabulary_size % block:
        scaled = op.Pad(scaled, op.constant([0, 0, 0, -vocabulary_size % block]), op.constant(-np.inf, np.float32))
    # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
    weights = op.Softmax(scaled, axis=1)
    uniform = double(op, uniform)

    limits_p = op.Less(rules.top_p, op.constant(1, np.float32))
    limits_min = op.Greater(rules.min_p, op.constant(0, np.float32))
    restricts = op.Or(op.Greater(rules.top_k, op.constant(0)), op.Or(limits_p, limits_min))
    is_restricted, is_free = op.And(restricts, is_drawn), op.And(op.Not(restricts), is_drawn)

    def free(inner: GraphBuilder) -> list[str]:
        blocks = Blocks(inner, by_block(inner, weights, block), block)
        return [blocks.draw(inner, inner.Mul(uniform, blocks.total))]

    def restricted(inner: GraphBuilder) -> list[str]:
        lowest = inner.ReduceMin(unpadded, inner.constant([1]))
        rows = _Rows(Tokens(scaled, weights, lowest), uniform, *_head(inner, scaled, weights))
        token = _Restricted(rows, rules, vocabulary_size).draw(inner, is_restricted)
        return [inner.Where(squeeze(inner, is_restricted), token, of_free)]

    nothing = squeeze(op, op.Cast(is_free, to=TensorProto.INT64))
    (of_free,) = op.when(any_of(op, is_free), free, lambda _: [nothing])
    (token,) = op.when(any_of(op, is_restricted), restricted, lambda _: [of_free])
    return token


def _head(op: GraphBuilder, scaled: str, weights: str) -> tuple[str, str, str]:
    _, order = op.node("TopK", [scaled, op.constant([HEAD])], 2, axis=1)
    of_head = op.GatherElements(weights, order, axis=1)
    return order, of_head, op.CumSum(double(op, of_head), op.constant(1))


class _Restricted:
    """The draw of rows of which some token may be excluded."""

    def __init__(self, rows: _Rows, rules: Rules, vocabulary_size: int) -> None:
        self._rows = rows
        self._rules = rules
        self._size = vocabulary_size
        self._block = block_of(vocabulary_size)

    def draw(self, op: GraphBuilder, is_restricted: str) -> str:
        """Draw a token `[row]` in the head, and behind it where a row keeps more than that."""
        rows, rules = self._rows, self._rules
        head_mass = last(op, rows.head_ends)
        has_tail = op.Greater(last(op, rows.head_weights), op.constant(_NEGLIGIBLE, np.float32))
        limits_k = op.And(op.Greater(rules.top_k, op.constant(0)), op.Less(rules.top_k, op.constant(self._size)))
        ends_behind = op.And(op.Greater(rules.top_k, op.constant(HEAD)), op.And(limits_k, has_tail))
        cut, mass = self._cut_by_count(op, op.And(ends_behind, is_restricted))

        in_head = op.And(limits_k, op.LessOrEqual(rules.top_k, op.constant(HEAD)))
        k = op.Where(in_head, rules.top_k, op.constant(HEAD))
        mass = op.Where(in_head, at(op, rows.head_ends, k), mass)
        limits_p = op.Less(rules.top_p, op.constant(1, np.float32))
        share = op.Where(limits_p, op.Mul(double(op, rules.top_p), mass), op.constant(np.inf, np.float64))
        least = op.Mul(rules.min_p, first(op, rows.head_weights))
        before = op.Sub(rows.head_ends, double(op, rows.head_weights))
        inside = op.And(op.Less(before, share), op.Less(op.constant(np.arange(HEAD)[None]), k))
        kept = count(op, op.And(inside, op.GreaterOrEqual(rows.head_weights, least)))
        goes_on = op.And(op.Equal(kept, op.constant(HEAD)), op.And(op.Greater(share, head_mass), has_tail))
        goes_on = op.And(op.And(goes_on, op.Not(in_head)), is_restricted)
        end = at(op, rows.head_ends, op.Max(kept, op.constant([[1]])))
        token = _draw_from_head(op, rows, op.Mul(rows.uniform, end))

        def beyond(inner: GraphBuilder, take: Take) -> list[str]:
            cut_k = Cut(*map(take, cut))
            return [self._draw_behind(inner, rows.take(take), cut_k, take(share), take(least))]

        (token,) = _in_rows(op, squeeze(op, goes_on), [token], beyond)
        return token

    def _cut_by_count(self, op: GraphBuilder, flags: str) -> tuple[Cut, str]:
        """The cut of top-k in the flagged rows, none elsewhere, and the mass before it, a column of float64."""
        everything = sum_of(op, self._rows.tokens.weights, self._block)
        zeros = op.Mul(self._rules.top_k, op.constant(0))
        nowhere = op.Add(op.Cast(zeros, to=TensorProto.FLOAT), op.constant(-np.inf, np.float32))

        def search(inner: GraphBuilder, take: Take) -> list[str]:
            rows = self._rows.take(take)
            tokens = _behind_head(inner, rows)
            limit = double(inner, inner.Sub(take(self._rules.top_k), inner.constant(HEAD)))
            cut = find_cut(inner, tokens, limit, self._block, by_count=True)
            kept = sum_of(inner, kept_weights(inner, tokens, cut, inner.constant(0, np.float32)), self._block)
            return [*cut, inner.Add(last(inner, rows.head_ends), kept)]

        key, token, mass = _in_rows(op, squeeze(op, flags), [nowhere, zeros, everything], search)
        return Cut(key, token), mass

    def _draw_behind(self, op: GraphBuilder, rows: _Rows, cut: Cut, share: str, least: str) -> str:
        """Draw a token `[row]` of the head or behind it, up to the cut of top-k and that of top-p."""
        tokens = _behind_head(op, rows)
        head_mass = last(op, rows.head_ends)
        limits_p = op.Less(share, op.constant(np.inf, np.float64))

        def search(inner: GraphBuilder, take: Take) -> list[str]:
            limit = inner.Sub(take(share), take(head_mass))
            of_p = find_cut(inner, Tokens(*map(take, tokens)), limit, self._block, by_count=False)
            return list(earlier(inner, of_p, Cut(*map(take, cut))))

        cut = Cut(*_in_rows(op, squeeze(op, limits_p), cut, search))
        kept = kept_weights(op, tokens, cut, least)
        blocks = Blocks(op, by_block(op, kept, self._block), self._block)
        target = op.Mul(rows.uniform, op.Add(head_mass, blocks.total))
        is_behind = squeeze(op, op.GreaterOrEqual(target, head_mass))
        token = blocks.draw(op, op.Sub(target, head_mass))
        return op.Where(is_behind, token, _draw_from_head(op, rows, target))


def _draw_from_head(op: GraphBuilder, rows: _Rows, target: str) -> str:
    """The token `[row]` of the head at which its running sum exceeds the target."""
    return squeeze(op, op.GatherElements(rows.head, inverse_cdf(op, rows.head_ends, target), axis=1))


def _behind_head(op: GraphBuilder, rows: _Rows) -> Tokens:
    """The tokens without those of the head."""
    nothing = op.Mul(rows.head_weights, op.constant(0, np.float32))
    impossible = op.Add(nothing, op.constant(-np.inf, np.float32))
    keys = op.ScatterElements(rows.tokens.keys, rows.head, impossible, axis=1)
    return Tokens(keys, op.ScatterElements(rows.tokens.weights, rows.head, nothing, axis=1), rows.tokens.lowest)


def _in_rows(
    op: GraphBuilder, flags: str, values: Sequence[str], compute: Callable[[GraphBuilder, Take], Sequence[str]]
) -> tuple[str, ...]:
    """Compute the values anew for the flagged rows alone; `compute` gets what takes these rows from a value."""

    def some(inner: GraphBuilder) -> list[str]:
        rows = inner.Squeeze(inner.NonZero(flags), inner.constant([0]))
        computed = compute(inner, lambda value: inner.Gather(value, rows, axis=0))
        places = inner.Unsqueeze(rows, inner.constant([1]))
        return [inner.ScatterND(value, places, new) for value, new in zip(values, computed, strict=True)]

    return op.when(any_of(op, flags), some, lambda _: list(values))
