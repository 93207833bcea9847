"""The rules of statewise.sampling as ONNX nodes.

Every row is computed by the same operations whatever the other rows ask for: `If` only leaves out work that no row
needs, so a row's token does not depend on who shares its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from export.builder import GraphBuilder
from statewise.sampling import BLOCK

NUM_CANDIDATES = 128
"""Most probable tokens looked at first where a row restricts its choice; all of them where these do not suffice."""


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
    divisor = op.Where(is_greedy, op.constant(1, np.float32), temperature)
    scaled = op.Div(logits, op.Unsqueeze(divisor, op.constant([1])))
    # Softmax works row by row; Exp and Log run over the whole batch, and round by an element's place in it.
    weights = _Weights(op, scaled, op.Softmax(scaled, axis=1), vocabulary_size)
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
        lambda inner: [_draw_restricted(inner, weights, needs_order, uniform)],
        lambda _: [nothing],
    )
    (unrestricted,) = op.when(
        _any(op, needs_none),
        lambda inner: [_draw_unrestricted(inner, weights, uniform)],
        lambda _: [nothing],
    )
    return op.Where(restricts, restricted, unrestricted)


class _Weights:
    """Probabilities after temperature, and their sums by block, in the order of additions that the rules state."""

    def __init__(self, op: GraphBuilder, scaled: str, values: str, vocabulary_size: int) -> None:
        self.scaled = scaled
        self.values = values
        self.vocabulary_size = vocabulary_size
        padding = -vocabulary_size % BLOCK
        padded = op.Pad(values, op.constant([0, 0, 0, padding])) if padding else values
        self.blocks = op.Reshape(padded, op.constant([0, -1, BLOCK]))
        self.sums = op.ReduceSum(self.blocks, op.constant([2]), keepdims=0)
        self.ends = op.CumSum(_double(op, self.sums), op.constant(1))
        self.total = _last(op, self.ends)


def _draw_restricted(op: GraphBuilder, weights: _Weights, needs_order: str, uniform: str) -> str:
    """Draw among the most probable tokens, falling back on all of them where a row keeps more than that."""
    num_candidates = min(NUM_CANDIDATES, weights.vocabulary_size)
    token, decided = _draw_among(op, weights, uniform, num_candidates)
    if num_candidates == weights.vocabulary_size:
        return token
    (token,) = op.when(
        _all(op, op.Or(decided, op.Not(needs_order))),
        lambda _: [token],
        lambda inner: [_draw_among(inner, weights, uniform, weights.vocabulary_size)[0]],
    )
    return token


def _draw_among(op: GraphBuilder, weights: _Weights, uniform: str, num_candidates: int) -> tuple[str, str]:
    """The token drawn among the first `num_candidates`, and whether all tokens that the row keeps are among them.

    Sums run from the most probable token down, so more candidates do not change the result of a row that is decided.
    """
    size = op.constant(num_candidates)
    _, order = op.node("TopK", [weights.scaled, op.constant([num_candidates])], 2, axis=1)
    candidates = op.GatherElements(weights.values, order, axis=1)
    masses = _double(op, candidates)
    cumulative = op.CumSum(masses, op.constant(1))
    rank = op.constant(np.arange(num_candidates)[None])

    limits_k = op.Greater(INPUTS.top_k, op.constant(0))
    k = op.Unsqueeze(op.Where(limits_k, op.Min(INPUTS.top_k, size), size), op.constant([1]))
    mass_of_k = op.GatherElements(cumulative, op.Sub(k, op.constant(1)), axis=1)
    mass = op.Where(op.Unsqueeze(limits_k, op.constant([1])), mass_of_k, weights.total)
    top_p, min_p = _column(op, 1), _column(op, 2)
    before = op.Sub(cumulative, masses)
    inside_p = op.Or(
        op.GreaterOrEqual(top_p, op.constant(1, np.float32)), op.Less(before, op.Mul(_double(op, top_p), mass))
    )
    most = op.Slice(candidates, op.constant([0]), op.constant([1]), op.constant([1]))
    keep = op.And(op.And(op.Less(rank, k), inside_p), op.GreaterOrEqual(candidates, op.Mul(min_p, most)))
    kept = op.Max(_count(op, keep), op.constant([[1]]))
    mass_kept = op.GatherElements(cumulative, op.Sub(kept, op.constant(1)), axis=1)
    target = op.Mul(_double(op, op.Unsqueeze(uniform, op.constant([1]))), mass_kept)
    drawn = _inverse_cdf(op, cumulative, target, mass_kept)
    token = op.Squeeze(op.GatherElements(order, drawn, axis=1), op.constant([1]))
    within = op.And(limits_k, op.LessOrEqual(INPUTS.top_k, size))
    decided = op.Or(op.Squeeze(op.Less(kept, size), op.constant([1])), within)
    return token, decided


def _draw_unrestricted(op: GraphBuilder, weights: _Weights, uniform: str) -> str:
    """Draw in vocabulary order: first a block by the blocks' sums, then inside it."""
    target = op.Mul(_double(op, op.Unsqueeze(uniform, op.constant([1]))), weights.total)
    block = _inverse_cdf(op, weights.ends, target, weights.total)
    before = op.Sub(
        op.GatherElements(weights.ends, block, axis=1), _double(op, op.GatherElements(weights.sums, block, axis=1))
    )
    chosen = op.GatherND(weights.blocks, block, batch_dims=1)
    inside = op.Add(op.CumSum(_double(op, chosen), op.constant(1)), before)
    index = _inverse_cdf(op, inside, target, _last(op, inside))
    return op.Squeeze(op.Add(op.Mul(block, op.constant(BLOCK)), index), op.constant([1]))


def _inverse_cdf(op: GraphBuilder, cumulative: str, target: str, end: str) -> str:
    passed = _count(op, op.LessOrEqual(cumulative, target))
    return op.Min(passed, _count(op, op.Less(cumulative, end)))


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
