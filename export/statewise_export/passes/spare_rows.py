"""A pass that adds a second row to operators whose CPU kernels in ONNX Runtime compute a lone row in another way.

With it a row alone gives bit for bit what it gives in a batch. A product with constant weights, which are packed, has
one routine for any number of rows, and so have LSTM and GRU.

Requires: recurrent operators that were not taken apart, where they are to be widened.
Ensures: RNN operators, and products of two computed matrices in padded steps, run over at least two rows; results are
under the same value names and of the same shapes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from statewise_export.builder import GraphBuilder

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep


def spare_rows(traced: TracedStep) -> TracedStep:
    """Put a copy of the first row behind the last one of RNN operators and of products of two computed matrices.

    Of products only those of steps whose rows are padded to the longest chunk among them. Where there are caches each
    row has a run of its own, and whole sequences are padded by their own length.
    """
    op = GraphBuilder("spare")
    constant = {*traced.weights, *(n for node in traced.nodes if node.op_type == "Constant" for n in node.output)}
    is_step = bool(traced.output and traced.new_state)
    is_padded = is_step and not any(node.op_type == "GroupQueryAttention" for node in traced.nodes)
    for node in traced.nodes:
        if node.op_type == "RNN":
            _widen_cell(op, node)
        elif node.op_type == "MatMul" and is_padded and not constant.intersection(node.input):
            _widen_product(op, node)
        else:
            op.nodes.append(node)
    return replace(traced, nodes=op.nodes)


def _widen_cell(op: GraphBuilder, node: onnx.NodeProto) -> None:
    inputs, w, r, b, lengths, initial = node.input
    rows = [_with_copy(op, inputs, 1), w, r, b, _with_copy(op, lengths, 0), _with_copy(op, initial, 1)]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    wide = op.node("RNN", rows, 2, **attributes)
    # The trace leaves out the last state where nobody reads it.
    for value, output, axis in zip(wide, filter(None, node.output), (2, 1), strict=False):
        _without_last(op, value, axis, output)


def _widen_product(op: GraphBuilder, node: onnx.NodeProto) -> None:
    left, right = node.input
    _without_last(op, op.MatMul(_with_copy(op, left, -2), right), -2, node.output[0])


def _with_copy(op: GraphBuilder, value: str, axis: int) -> str:
    return op.Concat(value, op.Slice(value, op.constant([0]), op.constant([1]), op.constant([axis])), axis=axis)


def _without_last(op: GraphBuilder, value: str, axis: int, output: str) -> None:
    op.Slice(value, op.constant([0]), op.constant([-1]), op.constant([axis]))
    # Under the name by which the other nodes know it.
    op.nodes[-1].output[0] = output
