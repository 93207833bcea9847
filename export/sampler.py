"""The rules of statewise.sampling as ONNX nodes.

Every row is computed by the same operations whatever the other rows ask for: `If` only leaves out work that no row
needs, so a row's token does not depend on who shares its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from export.builder import GraphBuilder
from export.draw import Rules, add_draw, any_of


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
    temperature, one = _column(op, 0), op.constant([1])
    is_greedy = op.Equal(temperature, op.constant(0, np.float32))
    is_drawn = op.Not(is_greedy)
    nothing = op.ConstantOfShape(op.Shape(uniform), value=_int64_zero())

    def draw(inner: GraphBuilder) -> list[str]:
        divisor = inner.Where(is_greedy, inner.constant(1, np.float32), temperature)
        rules = Rules(divisor, inner.Unsqueeze(INPUTS.top_k, one), _column(inner, 1), _column(inner, 2))
        return [add_draw(inner, logits, rules, is_drawn, inner.Unsqueeze(uniform, one), vocabulary_size)]

    (drawn,) = op.when(any_of(op, is_drawn), draw, lambda _: [nothing])
    (greedy,) = op.when(
        any_of(op, is_greedy), lambda inner: [inner.ArgMax(logits, axis=1, keepdims=0)], lambda _: [nothing]
    )
    return op.Where(op.Squeeze(is_greedy, one), greedy, drawn)


def _column(op: GraphBuilder, index: int) -> str:
    return op.Gather(INPUTS.parameters, op.constant([index]), axis=1)


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
