"""The rules of statewise.rules.sampling as ONNX nodes.

Every row is computed by the same operations whatever the other rows ask for: `If` only leaves out work that no row
needs, so a row's token does not depend on who shares its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from statewise.model.sampling_inputs import (
    ADJUSTED_TOKENS,
    FREQUENCY_PENALTY,
    LOGIT_BIAS,
    MIN_P,
    NUM_TOP,
    OUTPUT_COUNTS,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    SEEN,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingInput,
)
from statewise_export.builder import GraphBuilder
from statewise_export.choosing.blocks import add_argmax, any_of, squeeze
from statewise_export.choosing.draw import Rules, add_draw


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
    is_drawn = op.Greater(_column(op, TEMPERATURE), op.constant(0, np.float32))
    draws = any_of(op, is_drawn)
    has_entries = op.Cast(op.Size(ADJUSTED_TOKENS), to=TensorProto.BOOL)
    wanted = op.GreaterOrEqual(NUM_TOP, op.constant(0))

    def by_rules(inner: GraphBuilder) -> list[str]:
        def choose(deeper: GraphBuilder, values: str) -> list[str]:
            return [_choose(deeper, values, uniform, draws, is_drawn, vocabulary_size)]

        # The choice stands in both branches: handing the logits through an `If` would copy them.
        (token,) = inner.when(
            has_entries, lambda deeper: choose(deeper, _adjust(deeper, logits)), lambda deeper: choose(deeper, logits)
        )
        return [token, *_log_probabilities(inner, logits, token, wanted, vocabulary_size)]

    def greedy(inner: GraphBuilder) -> list[str]:
        return [add_argmax(inner, logits, vocabulary_size), *_no_log_probabilities(inner, uniform)]

    # One `If` for a batch that is greedy and nothing else: each costs as much as several nodes.
    token, *log_probabilities = op.when(op.Or(draws, op.Or(has_entries, wanted)), by_rules, greedy)
    total = op.ReduceSum(logits, op.constant([1]), keepdims=0)
    is_finite = op.Less(op.Abs(total), op.constant(np.inf, np.float32))
    return Sampled(op.Where(is_finite, token, op.constant(-1)), *log_probabilities)


def _choose(op: GraphBuilder, logits: str, uniform: str, draws: str, is_drawn: str, vocabulary_size: int) -> str:
    one = op.constant([1])

    def draw(inner: GraphBuilder) -> list[str]:
        divisor = inner.Where(is_drawn, _column(inner, TEMPERATURE), inner.constant(1, np.float32))
        rules = Rules(divisor, *(_column(inner, rule) for rule in (TOP_K, TOP_P, MIN_P)))
        drawn = add_draw(inner, logits, rules, is_drawn, inner.Unsqueeze(uniform, one), vocabulary_size)

        def beside_greedy(deeper: GraphBuilder) -> list[str]:
            return [deeper.Where(squeeze(deeper, is_drawn), drawn, add_argmax(deeper, logits, vocabulary_size))]

        return list(inner.when(any_of(inner, inner.Not(is_drawn)), beside_greedy, lambda _: [drawn]))

    (token,) = op.when(draws, draw, lambda inner: [add_argmax(inner, logits, vocabulary_size)])
    return token


def _column(op: GraphBuilder, rule: SamplingInput) -> str:
    return op.Unsqueeze(rule.name, op.constant([1]))


def _adjust(op: GraphBuilder, logits: str) -> str:
    """Logit bias, then penalties, on the listed tokens only."""
    zero = op.constant(0, np.float32)
    values = op.Add(op.GatherElements(logits, ADJUSTED_TOKENS, axis=1), LOGIT_BIAS.name)
    penalties = (REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY)
    repetition, presence, frequency = (_column(op, rule) for rule in penalties)
    repeated = op.Where(op.Greater(values, zero), op.Div(values, repetition), op.Mul(values, repetition))
    values = op.Where(SEEN, repeated, values)
    in_output = op.Cast(op.Greater(OUTPUT_COUNTS, zero), to=TensorProto.FLOAT)
    values = op.Sub(values, op.Mul(presence, in_output))
    values = op.Sub(values, op.Mul(frequency, OUTPUT_COUNTS))
    return op.ScatterElements(logits, ADJUSTED_TOKENS, values, axis=1)


def _log_probabilities(op: GraphBuilder, logits: str, token: str, wanted: str, vocabulary_size: int) -> tuple[str, ...]:
    num_top = op.Min(op.Reshape(NUM_TOP, op.constant([1])), op.constant([vocabulary_size]))

    def compute(inner: GraphBuilder) -> list[str]:
        log_probabilities = inner.LogSoftmax(logits, axis=1)
        index = inner.Unsqueeze(token, inner.constant([1]))
        chosen = inner.GatherElements(log_probabilities, index, axis=1)
        values, tokens = inner.node("TopK", [log_probabilities, num_top], 2, axis=1)
        return [squeeze(inner, chosen), tokens, values]

    return op.when(wanted, compute, lambda inner: _no_log_probabilities(inner, token))


def _no_log_probabilities(op: GraphBuilder, rows: str) -> list[str]:
    """Zeros and no tokens, for as many rows as this value `[row]` has."""
    shape = op.Shape(rows)
    empty = op.Concat(shape, op.constant([0]), axis=0)
    nothing = numpy_helper.from_array(np.zeros(1, np.int64))
    return [op.ConstantOfShape(shape), op.ConstantOfShape(empty, value=nothing), op.ConstantOfShape(empty)]
