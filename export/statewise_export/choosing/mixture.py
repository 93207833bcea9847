"""The rules of statewise.rules.mixture as ONNX nodes.

A row's numbers must not depend on its place in the batch, by no bit. So sums go through CumSum, which adds one by one;
and exponentials through Pow in float64, which takes each number by itself, where Exp takes several at once and rounds
those that are left over at the end in another way.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from statewise.model.sampling_inputs import NUM_TOP, TEMPERATURE
from statewise.model.spec import MixtureHead
from statewise.rules.mixture import LEAST_LOG_DENSITY
from statewise_export.builder import GraphBuilder
from statewise_export.choosing.blocks import double, squeeze


class _Mixture:
    """Names of the parameters in outputs `[row, output_size]`, as in `statewise.rules.mixture.Mixture`."""

    def __init__(self, op: GraphBuilder, output: str, head: MixtureHead) -> None:
        count, width = head.components, head.features
        sizes = [count, count * width, count * width]
        sizes += [head.output_size - sum(sizes)] if head.output_size > sum(sizes) else []
        self.logits, *parts = op.node("Split", [output, op.constant(sizes)], len(sizes), axis=1)
        shape = op.constant([-1, count, width])
        self.means, self.log_diagonal = (op.Reshape(part, shape) for part in parts[:2])
        self.below = op.Reshape(parts[2], op.constant([0, count, -1])) if parts[2:] else None
        self.features = width


def add_mixture_sampler(op: GraphBuilder, output: str, noise: str, head: MixtureHead) -> tuple[str, str]:
    """Draw one vector per row from outputs `[row, output_size]` with noise `[row, 1 + features]`.

    Returns the vectors `[row, features]`, not numbers where the output is not finite, and the logarithms of their
    densities under the model's own mixture `[row]`, zeros where nobody asks for them.
    """
    mixture = _Mixture(op, output, head)
    temperature = op.Unsqueeze(TEMPERATURE.name, op.constant([1]))
    uniform, normals = op.node("Split", [noise, op.constant([1, head.features])], 2, axis=1)
    component = _component(op, mixture.logits, temperature, uniform)
    mean, log_diagonal = (op.GatherND(part, component, batch_dims=1) for part in (mixture.means, mixture.log_diagonal))
    spread = op.Mul(_exp(op, log_diagonal), normals)
    if mixture.below is not None:
        below = op.GatherND(mixture.below, component, batch_dims=1)
        spread = op.Add(spread, _times_strictly_lower(op, below, normals, head.features))
    drawn = op.Add(mean, op.Mul(op.Sqrt(temperature), spread))
    total = op.ReduceSum(output, op.constant([1]), keepdims=1)
    is_bad = op.Or(op.IsNaN(total), op.IsInf(total))
    item = op.Where(is_bad, op.constant(np.nan, np.float32), drawn)
    (density,) = op.when(
        op.GreaterOrEqual(NUM_TOP, op.constant(0)),
        lambda inner: [add_log_density(inner, output, item, head)],
        lambda inner: [inner.ConstantOfShape(inner.Shape(TEMPERATURE.name))],
    )
    return item, density


def add_log_density(op: GraphBuilder, output: str, items: str, head: MixtureHead) -> str:
    """Logarithm of the density at items `[row, features]`, under outputs `[row, output_size]`; float32 `[row]`."""
    mixture, width = _Mixture(op, output, head), head.features
    difference = op.Sub(op.Unsqueeze(items, op.constant([1])), mixture.means)
    inverse = _exp(op, op.Neg(mixture.log_diagonal))
    if mixture.below is None:
        whitened = op.Mul(difference, inverse)
    else:
        whitened = _solve(op, difference, inverse, mixture.below, width)
    exponent = op.Mul(_sum_last(op, op.Mul(whitened, whitened), 2), op.constant(0.5, np.float32))
    constant = op.constant(0.5 * width * math.log(2 * math.pi), np.float32)
    volume = op.Add(_sum_last(op, mixture.log_diagonal, 2), constant)
    components = op.Sub(op.Neg(exponent), volume)
    joint = op.Max(op.Add(components, mixture.logits), op.constant(LEAST_LOG_DENSITY, np.float32))
    density = op.Sub(_log_sum_exp(op, joint), _log_sum_exp(op, mixture.logits))
    return squeeze(op, density)


def _component(op: GraphBuilder, logits: str, temperature: str, uniform: str) -> str:
    """Choose a component, int64 `[row, 1]`: by inverse CDF, or the most probable one where the temperature is 0."""
    is_greedy = op.Equal(temperature, op.constant(0, np.float32))
    divisor = op.Where(is_greedy, op.constant(1, np.float32), temperature)
    largest = op.ReduceMax(logits, op.constant([1]), keepdims=1)
    weights = op.Softmax(op.Div(op.Sub(logits, largest), divisor), axis=1)
    ends = op.CumSum(double(op, weights), op.constant(1))
    target = op.Mul(double(op, uniform), _last(op, ends, 1))
    before = op.Cast(op.LessOrEqual(ends, target), to=TensorProto.INT64)
    drawn = op.ReduceSum(before, op.constant([1]), keepdims=1)
    # Weights that are not numbers are before everything; the result is marked by its caller.
    last = op.Sub(op.Gather(op.Shape(logits), op.constant([1])), op.constant([1]))
    return op.Where(is_greedy, op.ArgMax(logits, axis=1, keepdims=1), op.Min(drawn, last))


def _times_strictly_lower(op: GraphBuilder, below: str, vectors: str, width: int) -> str:
    """Strictly lower triangular matrices, given row by row `[row, entry]`, times vectors `[row, features]`."""
    num_entries = width * (width - 1) // 2
    places = np.full((width, width), num_entries)  # a zero that is put behind the entries
    places[np.tril_indices(width, -1)] = np.arange(num_entries)
    padded = op.Pad(below, op.constant([0, 0, 0, 1]))
    matrices = op.Gather(padded, op.constant(places), axis=1)
    return _sum_last(op, op.Mul(matrices, op.Unsqueeze(vectors, op.constant([1]))), 2)


def _solve(op: GraphBuilder, difference: str, inverse: str, below: str, width: int) -> str:
    """Lower triangular matrices undone by forward substitution; all but `below` are `[row, component, features]`.

    `inverse` is one over the matrices' diagonals.
    """
    solved, first, two = [], op.constant([0]), op.constant([2])
    for column in range(width):
        value = op.Mul(*(op.Slice(part, first, op.constant([1]), two) for part in (difference, inverse)))
        solved.append(value)
        if column == width - 1:
            break
        factors = op.Gather(below, op.constant([r * (r - 1) // 2 + column for r in range(column + 1, width)]), axis=2)
        difference, inverse = (
            op.Slice(part, op.constant([1]), op.constant([width]), two) for part in (difference, inverse)
        )
        difference = op.Sub(difference, op.Mul(factors, value))
    return op.Concat(*solved, axis=2)


def _exp(op: GraphBuilder, values: str) -> str:
    base = op.constant(math.e, np.float64)
    return op.Cast(op.Pow(base, double(op, values)), to=TensorProto.FLOAT)


def _log_sum_exp(op: GraphBuilder, values: str) -> str:
    """Over the components `[row, component]`; `[row, 1]`. LogSoftmax works row by row."""
    one = op.constant([1])
    largest, share = (op.ReduceMax(part, one, keepdims=1) for part in (values, op.LogSoftmax(values, axis=1)))
    return op.Sub(largest, share)


def _sum_last(op: GraphBuilder, values: str, axis: int) -> str:
    """Sums over the last axis, which goes away."""
    return op.Squeeze(_last(op, op.CumSum(values, op.constant(axis)), axis), op.constant([axis]))


def _last(op: GraphBuilder, values: str, axis: int) -> str:
    return op.Gather(values, op.constant([-1]), axis=axis)
