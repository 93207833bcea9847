"""The draw of statewise.sampling as ONNX nodes: top-k, top-p, min-p, inverse CDF.

Columns are `[row, 1]`, masses float64. Only rows that need it go through the tail, whose work follows their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from export.builder import GraphBuilder
from statewise.sampling import GRID, HEAD, NUM_GROUPS

BLOCK = 128
"""Tokens summed at once: a running sum over a whole vocabulary is slow."""

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
    if vocabulary_size % BLOCK:
        padding = op.constant([0, 0, 0, -vocabulary_size % BLOCK])
        scaled = op.Pad(scaled, padding, op.constant(-np.inf, np.float32))
    # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
    weights = op.Softmax(scaled, axis=1)
    blocks = _Blocks(op, _by_block(op, weights))
    uniform = double(op, uniform)
    unrestricted = blocks.draw(op, op.Mul(uniform, blocks.total))

    limits_p = op.Less(rules.top_p, op.constant(1, np.float32))
    limits_min = op.Greater(rules.min_p, op.constant(0, np.float32))
    restricts = op.Or(op.Greater(rules.top_k, op.constant(0)), op.Or(limits_p, limits_min))
    is_restricted = op.And(restricts, is_drawn)

    def restricted(inner: GraphBuilder) -> list[str]:
        head = _head(inner, scaled, weights)
        token = _draw_restricted(inner, weights, head, rules, is_restricted, uniform, blocks.total, vocabulary_size)
        return [inner.Where(squeeze(inner, is_restricted), token, unrestricted)]

    (token,) = op.when(any_of(op, is_restricted), restricted, lambda _: [unrestricted])
    return token


class _Head(NamedTuple):
    """The most probable tokens `[row, HEAD]`, in order."""

    order: str
    weights: str
    ends: str
    mass: str


def _head(op: GraphBuilder, scaled: str, weights: str) -> _Head:
    _, order = op.node("TopK", [scaled, op.constant([HEAD])], 2, axis=1)
    of_head = op.GatherElements(weights, order, axis=1)
    ends = op.CumSum(double(op, of_head), op.constant(1))
    return _Head(order, of_head, ends, _last(op, ends))


def _draw_restricted(
    op: GraphBuilder,
    weights: str,
    head: _Head,
    rules: Rules,
    is_restricted: str,
    uniform: str,
    total: str,
    vocabulary_size: int,
) -> str:
    """Draw among the tokens of the head, and behind it where a row keeps more than that."""
    top_k = op.Min(rules.top_k, op.constant(vocabulary_size))
    limits_k = op.Greater(top_k, op.constant(0))
    k = op.Where(limits_k, op.Min(top_k, op.constant(HEAD)), op.constant(HEAD))
    is_long = op.And(op.Greater(top_k, op.constant(HEAD)), is_restricted)

    def mass_of_more(inner: GraphBuilder, take: Take) -> str:
        tail = _Tail(inner, take(weights), _Head(*map(take, head)))
        return squeeze(inner, tail.mass_of_top(inner, take(top_k), vocabulary_size))

    mass_of_k = squeeze(op, op.Where(limits_k, _at(op, head.ends, k), total))
    mass_of_k = _in_rows(op, squeeze(op, is_long), mass_of_k, mass_of_more)
    share = op.Mul(double(op, rules.top_p), op.Unsqueeze(mass_of_k, op.constant([1])))
    least = op.Mul(rules.min_p, _first(op, head.weights))

    before = op.Sub(head.ends, double(op, head.weights))
    inside = op.And(op.Less(before, share), op.Less(op.constant(np.arange(HEAD)[None]), k))
    kept = op.Max(_count(op, op.And(inside, op.GreaterOrEqual(head.weights, least))), op.constant([[1]]))
    token = _draw_from_head(op, head, op.Mul(uniform, _at(op, head.ends, kept)))

    def beyond(inner: GraphBuilder, take: Take) -> str:
        tail = _Tail(inner, take(weights), _Head(*map(take, head)))
        return tail.draw(inner, take(share), take(least), take(uniform))

    goes_on = op.And(op.Equal(kept, op.constant(HEAD)), op.Greater(share, head.mass))
    return _in_rows(op, squeeze(op, op.And(goes_on, is_restricted)), token, beyond)


def _draw_from_head(op: GraphBuilder, head: _Head, target: str) -> str:
    return squeeze(op, op.GatherElements(head.order, _inverse_cdf(op, head.ends, target), axis=1))


class _Tail:
    """The tokens behind the head, in groups of about equal probability, and the head before them."""

    def __init__(self, op: GraphBuilder, weights: str, head: _Head) -> None:
        self._head = head
        self._end = _last(op, head.weights)
        nothing = op.Mul(head.weights, op.constant(0, np.float32))
        self._weights = _by_block(op, op.ScatterElements(weights, head.order, nothing, axis=1))

    def draw(self, op: GraphBuilder, share: str, least: str, uniform: str) -> str:
        """Draw a token `[row]` that weighs no less than `least` from the part that is not more than the share."""
        likely = op.GreaterOrEqual(self._weights, _over_blocks(op, least))
        (mass,) = op.when(
            any_of(op, op.Greater(least, op.constant(0, np.float32))),
            lambda inner: [inner.Add(self._head.mass, _total(inner, _masked(inner, self._weights, likely)))],
            lambda inner: [self._mass_of_all(inner)],
        )
        target = op.Mul(uniform, op.Max(op.Min(share, mass), self._head.mass))
        # The groups before the one in which `least` lies are whole.
        group, before = self._search(op, self._mass, self._head.mass, target)
        inside = op.And(self._above(op, op.Add(group, op.constant(1))), op.Not(self._above(op, group)))
        blocks = _Blocks(op, _masked(op, self._weights, op.And(inside, likely)))
        # Where rounding finds a group that holds nothing, the head's last token stands for it.
        exists = op.Greater(blocks.total, op.constant(0, np.float64))
        is_beyond = squeeze(op, op.And(op.GreaterOrEqual(target, self._head.mass), exists))
        in_head = _draw_from_head(op, self._head, target)
        return op.Where(is_beyond, blocks.draw(op, op.Sub(target, before)), in_head)

    def mass_of_top(self, op: GraphBuilder, k: str, vocabulary_size: int) -> str:
        """Sum of the k largest weights; inside a group, each token counts for the group's mean."""
        k = double(op, k)
        group, first = self._search(op, self._num_tokens, op.constant(HEAD, np.float64), k)
        following = op.Add(group, op.constant(1))
        is_last = op.Equal(following, op.constant(NUM_GROUPS))
        end = op.Where(is_last, op.constant(vocabulary_size, np.float64), self._num_tokens(op, following))
        mass = self._mass(op, group)
        mass_at_end = op.Where(is_last, self._mass_of_all(op), self._mass(op, following))
        share = op.Div(op.Sub(k, first), op.Max(op.Sub(end, first), op.constant(1, np.float64)))
        return op.Add(mass, op.Mul(share, op.Sub(mass_at_end, mass)))

    def _search(
        self, op: GraphBuilder, measure: Callable[[GraphBuilder, str], str], least: str, target: str
    ) -> tuple[str, str]:
        """The last group, a column, before which there is less than the target; what there is."""
        group, before = op.Mul(op.Cast(target, to=TensorProto.INT64), op.constant(0)), least
        # Sums differ by rounding: one that all but reaches the target may be that of everything.
        target = op.Mul(target, op.constant(1 - 2.0**-21, np.float64))
        for bit in reversed(range(NUM_GROUPS.bit_length() - 1)):
            later = op.Add(group, op.constant(2**bit))
            amount = measure(op, later)
            is_before = op.LessOrEqual(amount, target)
            group, before = op.Where(is_before, later, group), op.Where(is_before, amount, before)
        return group, before

    def _num_tokens(self, op: GraphBuilder, group: str) -> str:
        above = op.Cast(self._above(op, group), to=TensorProto.FLOAT)
        return op.Add(op.constant(HEAD, np.float64), _total(op, above))

    def _mass(self, op: GraphBuilder, group: str) -> str:
        """Sum of the head and of the groups before this one."""
        # What `_above` tells; its comparison, a cast and a product would take twice as long.
        scale = self._scale(op, group)
        above = op.ThresholdedRelu(op.Mul(self._weights, _over_blocks(op, scale)), alpha=1.0)
        return op.Add(self._head.mass, op.Div(_total(op, above), double(op, scale)))

    def _above(self, op: GraphBuilder, group: str) -> str:
        scaled = op.Mul(self._weights, _over_blocks(op, self._scale(op, group)))
        return op.Greater(scaled, op.constant(1, np.float32))

    def _scale(self, op: GraphBuilder, group: str) -> str:
        """What makes weights above the group, and no others, larger than 1; a column."""
        # Above the first group there is nothing, above the end everything; rounding must not change that.
        factors = np.array([0.5, *np.exp(GRID * np.arange(1, NUM_GROUPS)), np.inf])
        return op.Div(op.Gather(op.constant(factors, np.float32), group, axis=0), self._end)

    def _mass_of_all(self, op: GraphBuilder) -> str:
        return op.Add(self._head.mass, _total(op, self._weights))


class _Blocks:
    """Values `[row, block, BLOCK]` and their sums; running sums are float64, in which no token is lost to rounding."""

    def __init__(self, op: GraphBuilder, values: str) -> None:
        self._values = values
        self._sums = double(op, op.ReduceSum(values, op.constant([2]), keepdims=0))
        self._ends = op.CumSum(self._sums, op.constant(1))
        self.total = _last(op, self._ends)

    def draw(self, op: GraphBuilder, target: str) -> str:
        """The first token `[row]` at which the running sum exceeds the target: first its block, then inside it."""
        block = _inverse_cdf(op, self._ends, target)
        before = op.Sub(op.GatherElements(self._ends, block, axis=1), op.GatherElements(self._sums, block, axis=1))
        chosen = op.GatherND(self._values, block, batch_dims=1)
        index = _inverse_cdf(op, op.CumSum(double(op, chosen), op.constant(1)), op.Sub(target, before))
        return squeeze(op, op.Add(op.Mul(block, op.constant(BLOCK)), index))


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


def _by_block(op: GraphBuilder, values: str) -> str:
    return op.Reshape(values, op.constant([0, -1, BLOCK]))


def _over_blocks(op: GraphBuilder, column: str) -> str:
    return op.Unsqueeze(column, op.constant([2]))


def _masked(op: GraphBuilder, weights: str, flags: str) -> str:
    return op.Mul(weights, op.Cast(flags, to=TensorProto.FLOAT))


def _total(op: GraphBuilder, values: str) -> str:
    """Sum, as a column, of values `[row, block, BLOCK]`."""
    return op.ReduceSum(double(op, op.ReduceSum(values, op.constant([2]), keepdims=0)), op.constant([1]))


def _at(op: GraphBuilder, ends: str, count: str) -> str:
    return op.GatherElements(ends, op.Sub(count, op.constant(1)), axis=1)


def _first(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([0]), op.constant([1]), op.constant([1]))


def _last(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([-1]), op.constant([2**62]), op.constant([1]))


def _count(op: GraphBuilder, flags: str) -> str:
    return op.ReduceSum(op.Cast(flags, to=TensorProto.INT64), op.constant([1]), keepdims=1)
