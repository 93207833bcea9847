"""A pass that takes RNN, GRU and LSTM operators apart into products.

ONNX Runtime's DynamicQuantizeLSTM takes its activations' scale over the whole batch, and RNN and GRU have no such
kernel. The equations and the order of gates are those of the ONNX operators, version 14.

Requires: recurrent operators whose weights are constants, GRU with linear_before_reset = 1.
Ensures: every such operator with a matrix of MIN_NUMBERS or more is products and elementwise operators, under the same
value names; in float32 they compute the same within rounding. Quantization follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from statewise_export.builder import GraphBuilder, untyped
from statewise_export.passes.products import MIN_NUMBERS

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

State = tuple[str, ...]
Cell = Callable[[GraphBuilder, str, State], State]
"""From the input's part of the gates, `[row, gates]`, and the old state to the new state, `[row, hidden]` each."""


def expand_cells(traced: TracedStep) -> TracedStep:
    """Take apart the recurrent operators whose matrices are worth quantizing."""
    op = GraphBuilder("cell")
    weights = dict(traced.weights)
    for node in traced.nodes:
        if node.op_type in _CELLS and weights[node.input[2]].size >= MIN_NUMBERS:
            _expand(op, node, weights)
        else:
            op.nodes.append(node)
    return replace(traced, nodes=op.nodes, weights=weights)


def _expand(op: GraphBuilder, node: onnx.NodeProto, weights: dict[str, NDArray[Any]]) -> None:
    """One layer, of one direction or two: inputs `[time, row, features]`."""
    num_directions = len(weights[node.input[1]])
    directions = [_expand_direction(op, node, weights, d) for d in range(num_directions)]
    # The operator has an axis for directions: [time, direction, row, hidden] and [direction, row, hidden].
    for index, output in enumerate(node.output):
        if output:
            axis = op.constant([1 if index == 0 else 0])
            values = [op.Unsqueeze(direction[index], axis) for direction in directions]
            if num_directions > 1:
                op.Concat(*values, axis=1 if index == 0 else 0)
            op.nodes[-1].output[0] = output


def _expand_direction(
    op: GraphBuilder, node: onnx.NodeProto, weights: dict[str, NDArray[Any]], direction: int
) -> list[str]:
    """Hidden vectors `[time, row, hidden]` and the last state: the input's products for all times, then the cell."""
    inputs, w, r, b, lengths, *initial = node.input
    end = ".reverse" if direction else ""
    input_bias, hidden_bias = np.split(weights[b][direction], 2)
    names = {f"{w}.matrix{end}": weights[w][direction].T, f"{r}.matrix{end}": weights[r][direction].T}
    names |= {f"{b}.input{end}": input_bias, f"{b}.hidden{end}": hidden_bias}
    weights |= {name: np.ascontiguousarray(array) for name, array in names.items()}
    projected = op.Add(op.MatMul(inputs, f"{w}.matrix{end}"), f"{b}.input{end}")
    is_only = len(weights[w]) == 1
    state = tuple(
        op.Squeeze(value, op.constant([0])) if is_only else op.Gather(value, op.constant(direction), axis=0)
        for value in initial
    )
    activation = _activation(node, direction)
    cell = _CELLS[node.op_type](f"{r}.matrix{end}", f"{b}.hidden{end}", activation)
    is_one_step = op.Equal(op.Gather(op.Shape(inputs), op.constant(0)), op.constant(1))

    def once(inner: GraphBuilder) -> list[str]:
        new = _keep_ended(inner, cell, inner.Squeeze(projected, inner.constant([0])), state, inner.constant(0), lengths)
        return [inner.Unsqueeze(new[0], inner.constant([0])), *new]

    def unrolled(inner: GraphBuilder) -> list[str]:
        return _scan(inner, cell, projected, state, lengths, backward=direction == 1)

    # Decoding feeds one item, where a loop over time would cost more than the cell.
    return list(op.when(is_one_step, once, unrolled))


def _scan(op: GraphBuilder, cell: Cell, projected: str, state: State, lengths: str, *, backward: bool) -> list[str]:
    """Hidden vectors `[time, row, hidden]` and the last state: the cell, in a loop over time.

    Backward a row's state stays as it is until the loop comes to the row's last item.
    """
    num_steps = op.Gather(op.Shape(projected), op.constant(0))
    body = op.subgraph()
    old = tuple(body.new_name() for _ in state)
    count, go_on = body.new_name(), body.new_name()
    time = body.Sub(body.Sub(num_steps, body.constant(1)), count) if backward else count
    new = _keep_ended(body, cell, body.Gather(projected, time, axis=0), old, time, lengths)
    outputs = [body.Identity(value) for value in (go_on, *new, new[0])]
    inputs = [helper.make_tensor_value_info(count, TensorProto.INT64, [])]
    inputs += [helper.make_tensor_value_info(go_on, TensorProto.BOOL, []), *map(untyped, old)]
    graph = helper.make_graph(body.nodes, "time", inputs, [untyped(name) for name in outputs])
    *last, hidden = op.node("Loop", [num_steps, "", *state], len(state) + 1, body=graph)
    if backward:
        ends = [op.constant([value]) for value in (-1, np.iinfo(np.int64).min, 0, -1)]
        hidden = op.Slice(hidden, *ends)
    return [hidden, *last]


def _keep_ended(op: GraphBuilder, cell: Cell, projected: str, state: State, time: str, lengths: str) -> State:
    """The cell, but rows without an item at this time keep their state."""
    has_item = op.Unsqueeze(op.Less(op.Cast(time, to=TensorProto.INT32), lengths), op.constant([1]))
    new = cell(op, projected, state)
    return tuple(op.Where(has_item, n, o) for n, o in zip(new, state, strict=True))


def _lstm(matrix: str, bias: str, _: str) -> Cell:
    def cell(op: GraphBuilder, projected: str, state: State) -> State:
        hidden, memory = state
        gates = op.Add(op.Add(projected, op.MatMul(hidden, matrix)), bias)
        i, o, f, c = op.node("Split", [gates], 4, axis=1, num_outputs=4)
        memory = op.Add(op.Mul(op.Sigmoid(f), memory), op.Mul(op.Sigmoid(i), op.Tanh(c)))
        return op.Mul(op.Sigmoid(o), op.Tanh(memory)), memory

    return cell


def _gru(matrix: str, bias: str, _: str) -> Cell:
    """With linear_before_reset = 1, as torch.nn.GRU has it."""

    def cell(op: GraphBuilder, projected: str, state: State) -> State:
        (hidden,) = state
        z, r, h = op.node("Split", [projected], 3, axis=1, num_outputs=3)
        recurrent = op.Add(op.MatMul(hidden, matrix), bias)
        z_hidden, r_hidden, h_hidden = op.node("Split", [recurrent], 3, axis=1, num_outputs=3)
        candidate = op.Tanh(op.Add(h, op.Mul(op.Sigmoid(op.Add(r, r_hidden)), h_hidden)))
        # (1 - z) * candidate + z * hidden
        return (op.Add(candidate, op.Mul(op.Sigmoid(op.Add(z, z_hidden)), op.Sub(hidden, candidate))),)

    return cell


def _rnn(matrix: str, bias: str, activation: str) -> Cell:
    def cell(op: GraphBuilder, projected: str, state: State) -> State:
        return (op.node(activation, [op.Add(op.Add(projected, op.MatMul(state[0], matrix)), bias)], 1)[0],)

    return cell


_CELLS: dict[str, Callable[[str, str, str], Cell]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _activation(node: onnx.NodeProto, direction: int) -> str:
    names = [helper.get_attribute_value(a) for a in node.attribute if a.name == "activations"]
    return str(names[0][direction].decode()) if names else "Tanh"
