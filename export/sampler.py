"""The rules of statewise.sampling as ONNX nodes.

Every row is computed by the same operations whatever the other rows ask for: `If` only leaves out work that no row
needs, so a row's token does not depend on who shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from export.builder import GraphBuilder
from statewise.sampling import GRID, HEAD, NUM_GROUPS

BLOCK = 128
"""Tokens summed at once: a running sum over a whole vocabulary is slow."""


class SamplerInputs(NamedTuple):
    """Names of the sampler's inputs, as the runtime feeds them."""

    parameters: str = "sampling.parameters"
    """float32 `[row, 6]`: temperature, top_p, min_p, repetition, presence and frequency penalty."""
    top_k: str = "sampling.top_k"
    """int64 `[row]`."""
    adjust_ids: str = "sampling.adjust_ids"
    """int64 `[row, entry]`: tokens with a bias or a penalty; a row with fewer repeats an entry of its own."""
    adjust_values: str = "sampling.adjust_values"
    """float32 `[row, entry, 3]`: logit bias, 1 where seen in prompt or output, times in the output."""
    num_top: str = "sampling.num_top"
    """int64 scalar: -1 for no log-probabilities, else how many of the most probable tokens to report."""


INPUTS = SamplerInputs()


class Sampled(NamedTuple):
    """Names of the sampler's results."""

    token: str
    """int64 `[row]`; -1 where the row's logits are not finite."""
    log_probability: str
    """float32 `[row]`, of the chosen token under the model's own distribution; zeros where not asked for."""
    top_tokens: str
    """int64 `[row, n]`."""
    top_log_probabilities: str
    """float32 `[row, n]`."""


def add_sampler(op: GraphBuilder, logits: str, uniform: str, vocabulary_size: int) -> Sampled:
    """Choose one token per row from logits `[row, vocabulary]` and uniform numbers `[row]`."""

    def adjusted(inner: GraphBuilder) -> list[str]:
        return [_choose(inner, _adjust(inner, logits), uniform, vocabulary_size)]

    # The choice stands in both branches: handing the logits through an `If` would copy them.
    has_entries = op.Cast(op.Size(INPUTS.adjust_ids), to=TensorProto.BOOL)
    (token,) = op.when(has_entries, adjusted, lambda inner: [_choose(inner, logits, uniform, vocabulary_size)])
    total = op.ReduceSum(logits, op.constant([1]), keepdims=0)
    bad = op.Or(op.IsNaN(total), op.IsInf(total))
    return Sampled(op.Where(bad, op.constant(-1), token), *_log_probabilities(op, logits, token, vocabulary_size))


def _choose(op: GraphBuilder, logits: str, uniform: str, vocabulary_size: int) -> str:
    temperature = _parameter(op, 0)
    is_greedy = op.Equal(temperature, op.constant(0, np.float32))
    greedy = op.ArgMax(logits, axis=1, keepdims=0)

    def sampled(inner: GraphBuilder) -> list[str]:
        drawn = _draw(inner, logits, temperature, is_greedy, uniform, vocabulary_size)
        return [inner.Where(is_greedy, greedy, drawn)]

    (token,) = op.when(_all(op, is_greedy), lambda _: [greedy], sampled)
    return token


def _parameter(op: GraphBuilder, index: int) -> str:
    return op.Gather(INPUTS.parameters, op.constant(index), axis=1)


def _column(op: GraphBuilder, index: int) -> str:
    return op.Unsqueeze(_parameter(op, index), op.constant([1]))


def _all(op: GraphBuilder, flags: str) -> str:
    # Through int32: booleans do not reduce.
    return op.Cast(op.ReduceMin(op.Cast(flags, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def _any(op: GraphBuilder, flags: str) -> str:
    return op.Cast(op.ReduceMax(op.Cast(flags, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def _adjust(op: GraphBuilder, logits: str) -> str:
    """Logit bias, then penalties, on the listed tokens only."""
    zero = op.constant(0, np.float32)
    bias, seen, repeats = (op.Gather(INPUTS.adjust_values, op.constant(index), axis=2) for index in range(3))
    values = op.Add(op.GatherElements(logits, INPUTS.adjust_ids, axis=1), bias)
    repetition, presence, frequency = (_column(op, index) for index in (3, 4, 5))
    repeated = op.Where(op.Greater(values, zero), op.Div(values, repetition), op.Mul(values, repetition))
    values = op.Where(op.Greater(seen, zero), repeated, values)
    in_output = op.Cast(op.Greater(repeats, zero), to=TensorProto.FLOAT)
    values = op.Sub(values, op.Mul(presence, in_output))
    values = op.Sub(values, op.Mul(frequency, repeats))
    return op.ScatterElements(logits, INPUTS.adjust_ids, values, axis=1)


def _draw(op: GraphBuilder, logits: str, temperature: str, is_greedy: str, uniform: str, vocabulary_size: int) -> str:
    """Draw a token for every row by inverse CDF."""
    row = _Row(op, logits, op.Where(is_greedy, op.constant(1, np.float32), temperature), uniform, vocabulary_size)
    restricts = op.Or(
        op.Greater(INPUTS.top_k, op.constant(0)),
        op.Or(
            op.Less(_parameter(op, 1), op.constant(1, np.float32)),
            op.Greater(_parameter(op, 2), op.constant(0, np.float32)),
        ),
    )
    needs_order = op.And(restricts, op.Not(is_greedy))
    needs_none = op.Not(op.Or(restricts, is_greedy))
    nothing = op.ConstantOfShape(op.Shape(uniform), value=_int64_zero())
    (restricted,) = op.when(
        _any(op, needs_order),
        lambda inner: [_draw_restricted(inner, row, needs_order)],
        lambda _: [nothing],
    )
    (unrestricted,) = op.when(
        _any(op, needs_none),
        lambda inner: [row.blocks.draw(inner, inner.Mul(row.uniform, row.blocks.total))],
        lambda _: [nothing],
    )
    return op.Where(restricts, restricted, unrestricted)


class _Row:
    """Logits and weights after temperature, `[row, vocabulary]` padded to whole blocks, and uniform numbers."""

    def __init__(self, op: GraphBuilder, logits: str, divisor: str, uniform: str, vocabulary_size: int) -> None:
        padding = op.constant([0, 0, 0, -vocabulary_size % BLOCK])
        scaled = op.Div(logits, op.Unsqueeze(divisor, op.constant([1])))
        self.scaled = op.Pad(scaled, padding, op.constant(-np.inf, np.float32)) if vocabulary_size % BLOCK else scaled
        # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
        self.weights = op.Softmax(self.scaled, axis=1)
        self.blocks = _Blocks(op, op.Reshape(self.weights, op.constant([0, -1, BLOCK])))
        self.uniform = _double(op, op.Unsqueeze(uniform, op.constant([1])))
        self.vocabulary_size = vocabulary_size


class _Blocks:
    """Values `[row, block, BLOCK]` and their sums; running sums are float64, in which no token is lost to rounding."""

    def __init__(self, op: GraphBuilder, values: str) -> None:
        self.values = values
        self.sums = _double(op, op.ReduceSum(values, op.constant([2]), keepdims=0))
        self.ends = op.CumSum(self.sums, op.constant(1))
        self.total = _last(op, self.ends)

    def draw(self, op: GraphBuilder, target: str) -> str:
        """The first token `[row]` at which the running sum exceeds the target: first its block, then inside it."""
        block = _inverse_cdf(op, self.ends, target)
        before = op.Sub(op.GatherElements(self.ends, block, axis=1), op.GatherElements(self.sums, block, axis=1))
        chosen = op.GatherND(self.values, block, batch_dims=1)
        index = _inverse_cdf(op, op.CumSum(_double(op, chosen), op.constant(1)), op.Sub(target, before))
        return op.Squeeze(op.Add(op.Mul(block, op.constant(BLOCK)), index), op.constant([1]))


def _draw_restricted(op: GraphBuilder, row: _Row, needs_order: str) -> str:
    """Draw among the tokens of the head, and behind it where a row keeps more than that."""
    head = _Head(op, row)
    top_k = op.Min(op.Unsqueeze(INPUTS.top_k, op.constant([1])), op.constant(row.vocabulary_size))
    limits_k = op.Greater(top_k, op.constant(0))
    k = op.Where(limits_k, op.Min(top_k, op.constant(HEAD)), op.constant(HEAD))
    is_long = op.Greater(top_k, op.constant(HEAD))
    (mass_of_more,) = op.when(
        _any(op, is_long),
        lambda inner: [_Tail(inner, row, head).mass_of_top(inner, top_k)],
        lambda _: [row.blocks.total],
    )
    mass_of_k = op.Where(op.And(limits_k, op.Not(is_long)), _at(op, head.ends, k), row.blocks.total)
    share = op.Mul(_double(op, _column(op, 1)), op.Where(is_long, mass_of_more, mass_of_k))
    least = op.Mul(_column(op, 2), _first(op, head.weights))

    before = op.Sub(head.ends, _double(op, head.weights))
    inside = op.And(op.Less(before, share), op.Less(op.constant(np.arange(HEAD)[None]), k))
    kept = op.Max(_count(op, op.And(inside, op.GreaterOrEqual(head.weights, least))), op.constant([[1]]))
    target = op.Mul(row.uniform, _at(op, head.ends, kept))
    token = op.Squeeze(_take(op, head.order, _inverse_cdf(op, head.ends, target)), op.constant([1]))

    fits = op.Or(op.Less(kept, op.constant(HEAD)), op.LessOrEqual(share, head.mass))
    goes_on = op.And(op.Not(op.Squeeze(fits, op.constant([1]))), needs_order)
    (token,) = op.when(
        _any(op, goes_on),
        lambda inner: [inner.Where(goes_on, _draw_beyond(inner, row, head, share, least), token)],
        lambda _: [token],
    )
    return token


def _draw_beyond(op: GraphBuilder, row: _Row, head: _Head, share: str, least: str) -> str:
    """Draw for rows that keep the whole head, and more."""
    tail = _Tail(op, row, head)
    mass = op.Min(share, tail.mass_of_at_least(op, least))
    target = op.Mul(row.uniform, op.Max(mass, head.mass))
    in_head = _take(op, head.order, _inverse_cdf(op, head.ends, target))
    is_head = op.Squeeze(op.Less(target, head.mass), op.constant([1]))
    return op.Where(is_head, op.Squeeze(in_head, op.constant([1])), tail.draw(op, target))


class _Head:
    """The most probable tokens `[row, HEAD]`, in order."""

    def __init__(self, op: GraphBuilder, row: _Row) -> None:
        scaled, self.order = op.node("TopK", [row.scaled, op.constant([HEAD])], 2, axis=1)
        self.last = _last(op, scaled)
        self.weights = op.GatherElements(row.weights, self.order, axis=1)
        self.ends = op.CumSum(_double(op, self.weights), op.constant(1))
        self.mass = _last(op, self.ends)


class _Tail:
    """The tokens behind the head, in groups of about equal probability."""

    def __init__(self, op: GraphBuilder, row: _Row, head: _Head) -> None:
        self._head = head
        self._vocabulary_size = row.vocabulary_size
        nothing = op.Mul(head.weights, op.constant(0, np.float32))
        weights = op.ScatterElements(row.weights, head.order, nothing, axis=1)
        self._weights, self._scaled = (
            op.Reshape(values, op.constant([0, -1, BLOCK])) for values in (weights, row.scaled)
        )

    def mass_of_at_least(self, op: GraphBuilder, least: str) -> str:
        """Sum of the head's weights, and of the tail's that are not below `least`."""
        return self._mass(op, op.GreaterOrEqual(self._weights, op.Unsqueeze(least, op.constant([2]))))

    def mass_of_top(self, op: GraphBuilder, k: str) -> str:
        """Sum of the k largest weights; inside a group, each token counts for the group's mean."""
        k = _double(op, k)
        group = self._search(op, self._count, k)
        following = op.Add(group, op.constant(1, np.float32))
        first, mass = self._count(op, self._above(op, group)), self._mass(op, self._above(op, group))
        is_last = op.GreaterOrEqual(following, op.constant(NUM_GROUPS, np.float32))
        end = op.Where(
            is_last, op.constant(self._vocabulary_size, np.float64), self._count(op, self._above(op, following))
        )
        size = op.Max(op.Sub(end, first), op.constant(1, np.float64))
        group_mass = op.Sub(self._mass(op, self._above(op, following)), mass)
        return op.Add(mass, op.Mul(op.Div(op.Sub(k, first), size), group_mass))

    def draw(self, op: GraphBuilder, target: str) -> str:
        """The token `[row]` at which the running sum, head first, exceeds the target."""
        group = self._search(op, self._mass, target)
        above = self._above(op, group)
        following = self._above(op, op.Add(group, op.constant(1, np.float32)))
        inside = op.Cast(op.And(following, op.Not(above)), to=TensorProto.FLOAT)
        return _Blocks(op, op.Mul(self._weights, inside)).draw(op, op.Sub(target, self._mass(op, above)))

    def _search(self, op: GraphBuilder, measure: Callable[[GraphBuilder, str], str], target: str) -> str:
        """The last group, `[row, 1]`, before which there is no more than the target."""
        group = op.constant([[0]], np.float32)
        for bit in reversed(range(NUM_GROUPS.bit_length() - 1)):
            later = op.Add(group, op.constant(2**bit, np.float32))
            group = op.Where(op.LessOrEqual(measure(op, self._above(op, later)), target), later, group)
        return group

    def _above(self, op: GraphBuilder, group: str) -> str:
        """Which logits `[row, block, BLOCK]` lie above the group; behind the last group there is nothing."""
        end = op.Sub(self._head.last, op.Mul(group, op.constant(GRID, np.float32)))
        is_group = op.Less(group, op.constant(NUM_GROUPS, np.float32))
        end = op.Where(is_group, end, op.constant(-np.inf, np.float32))
        return op.Greater(self._scaled, op.Unsqueeze(end, op.constant([2])))

    def _mass(self, op: GraphBuilder, flags: str) -> str:
        weights = op.Mul(self._weights, op.Cast(flags, to=TensorProto.FLOAT))
        sums = _double(op, op.ReduceSum(weights, op.constant([2]), keepdims=0))
        return op.Add(self._head.mass, op.ReduceSum(sums, op.constant([1])))

    def _count(self, op: GraphBuilder, flags: str) -> str:
        # float32 counts exactly up to 2**24. Ties with the head's last may be above no group.
        count = op.ReduceSum(op.Cast(flags, to=TensorProto.FLOAT), op.constant([1, 2]), keepdims=0)
        return _double(op, op.Unsqueeze(op.Max(count, op.constant(HEAD, np.float32)), op.constant([1])))


def _inverse_cdf(op: GraphBuilder, ends: str, target: str) -> str:
    """First index whose end exceeds the target; where rounding hides it, the last with any weight."""
    passed = _count(op, op.LessOrEqual(ends, target))
    return op.Min(passed, _count(op, op.Less(ends, _last(op, ends))))


def _at(op: GraphBuilder, ends: str, count: str) -> str:
    return _take(op, ends, op.Sub(count, op.constant(1)))


def _take(op: GraphBuilder, values: str, index: str) -> str:
    return op.GatherElements(values, index, axis=1)


def _first(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([0]), op.constant([1]), op.constant([1]))


def _double(op: GraphBuilder, values: str) -> str:
    return op.Cast(values, to=TensorProto.DOUBLE)


def _last(op: GraphBuilder, values: str) -> str:
    return op.Slice(values, op.constant([-1]), op.constant([2**62]), op.constant([1]))


def _count(op: GraphBuilder, flags: str) -> str:
    return op.ReduceSum(op.Cast(flags, to=TensorProto.INT64), op.constant([1]), keepdims=1)


def _log_probabilities(op: GraphBuilder, logits: str, token: str, vocabulary_size: int) -> tuple[str, ...]:
    num_top = op.Min(op.Reshape(INPUTS.num_top, op.constant([1])), op.constant([vocabulary_size]))

    def compute(inner: GraphBuilder) -> list[str]:
        log_probabilities = inner.LogSoftmax(logits, axis=1)
        index = inner.Unsqueeze(token, inner.constant([1]))
        chosen = inner.GatherElements(log_probabilities, index, axis=1)
        values, tokens = inner.node("TopK", [log_probabilities, num_top], 2, axis=1)
        return [inner.Squeeze(chosen, inner.constant([1])), tokens, values]

    def leave_out(inner: GraphBuilder) -> list[str]:
        rows = inner.Shape(token)
        empty = inner.Concat(rows, inner.constant([0]), axis=0)
        return [
            inner.ConstantOfShape(rows),
            inner.ConstantOfShape(empty, value=_int64_zero()),
            inner.ConstantOfShape(empty),
        ]

    wanted = op.GreaterOrEqual(INPUTS.num_top, op.constant(0))
    return op.when(wanted, compute, leave_out)


def _int64_zero() -> TensorProto:
    return numpy_helper.from_array(np.zeros(1, np.int64))
