"""A pass that fixes the order of sums along an inner dimension, as where hidden vectors are averaged over time.

ONNX Runtime's CPU kernels choose the order of the additions by the shape: one row is one matrix to them, whose columns
are added in another order than those of several rows. CumSum adds each column by itself, first number to last.

Requires: reductions whose axes are constants.
Ensures: no ReduceSum, ReduceMean, ReduceL2 or ReduceSumSquare over an inner dimension is left; results are the same
within rounding, and a row's do not depend on the other rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from statewise_export.builder import GraphBuilder, values_read

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

Array = NDArray[Any]

_SQUARED = frozenset({"ReduceL2", "ReduceSumSquare"})
_SUMS = _SQUARED | {"ReduceSum", "ReduceMean"}


def order_sums(traced: TracedStep) -> TracedStep:
    """Replace sums that leave out the last dimension by sums in a fixed order.

    Along the last dimension every sum lies in one piece, which the kernels add up in one way.
    """
    op = GraphBuilder("ordered")
    constants = dict(traced.weights)
    for node in traced.nodes:
        constants |= _constant(node)
        axes = _axes(node, constants)
        if axes and all(axis not in (0, -1) for axis in axes):
            _add_sum(op, node, axes)
        else:
            op.nodes.append(node)
    read = values_read(op.nodes)
    weights = {name: array for name, array in traced.weights.items() if name in read}
    return replace(traced, nodes=op.nodes, weights=weights)


def _constant(node: onnx.NodeProto) -> dict[str, Array]:
    if node.op_type != "Constant" or node.attribute[0].name != "value":
        return {}
    return {node.output[0]: numpy_helper.to_array(node.attribute[0].t)}


def _axes(node: onnx.NodeProto, constants: dict[str, Array]) -> list[int]:
    """The dimensions that a node sums over, as far as they are constant; none where it adds up all."""
    names = node.input[1:2] if node.op_type in _SUMS else ()
    return [int(axis) for name in names if name in constants for axis in np.ravel(constants[name])]


def _add_sum(op: GraphBuilder, node: onnx.NodeProto, axes: list[int]) -> None:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    source = node.input[0]
    total = op.Mul(source, source) if node.op_type in _SQUARED else source
    for axis in axes:
        total = op.Gather(op.CumSum(total, op.constant(axis)), op.constant([-1]), axis=axis)
    if node.op_type == "ReduceMean":
        sizes = op.Gather(op.Shape(source), op.constant(axes))
        total = op.Div(total, op.CastLike(op.ReduceProd(sizes, keepdims=0), source))
    if node.op_type == "ReduceL2":
        total = op.Sqrt(total)
    if attributes.get("keepdims", 1):
        op.Identity(total)
    else:
        op.Squeeze(total, op.constant(axes))
    # Under the name by which the other nodes know it.
    op.nodes[-1].output[0] = node.output[0]
