"""Sums along an inner dimension: the same numbers, in an order that no company changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from statewise_export.passes.reductions import order_sums
from statewise_export.trace.trace import TracedStep
from statewise_server.runtime.ort.sessions import create_session

NUMPY = {
    "ReduceSum": lambda x, axes, keep: x.sum(axis=axes, keepdims=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axis=axes, keepdims=keep),
    "ReduceL2": lambda x, axes, keep: np.sqrt((x * x).sum(axis=axes, keepdims=keep)),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axis=axes, keepdims=keep),
}


def traced(operator: str, axes: tuple[int, ...], *, keepdims: bool) -> TracedStep:
    node = helper.make_node(operator, ["items", "axes"], ["output"], keepdims=int(keepdims))
    return TracedStep([node], {"axes": np.array(axes)}, "output", (), frozenset({"output"}))


def run(step: TracedStep, items: Any) -> Any:
    info = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(array, name) for name, array in step.weights.items()]
    inputs = [info("items", TensorProto.FLOAT, ["row", *items.shape[1:]])]
    graph = helper.make_graph(step.nodes, "g", inputs, [info("output", TensorProto.FLOAT, None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return create_session(model.SerializeToString(), intra_op_threads=2).run(None, {"items": items})[0]


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(1,), (-2,), (1, 2)])
@pytest.mark.parametrize("operator", NUMPY)
def test_a_row_alone_sums_to_what_it_does_in_company(operator: str, axes: tuple[int, ...], keepdims: bool) -> None:
    """The numbers are NumPy's, and those of a row alone are bit for bit those that it has in a batch."""
    shape = (16, 37, 5, 33) if len(axes) > 1 or axes == (-2,) else (16, 37, 33)
    items = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ordered = order_sums(traced(operator, axes, keepdims=keepdims))

    together = run(ordered, items)

    np.testing.assert_allclose(together, NUMPY[operator](items, axes, keepdims), rtol=1e-4, atol=1e-5)
    for row in range(0, 16, 5):
        np.testing.assert_array_equal(run(ordered, items[row : row + 1]), together[row : row + 1])


def test_sums_along_the_last_dimension_stay_as_they_are() -> None:
    """They lie in one piece and are added up in one way; so do sums over all rows, which are nobody's alone."""
    for axes in ((-1,), (0,)):
        step = traced("ReduceSum", axes, keepdims=True)
        assert [node.op_type for node in order_sums(step).nodes] == ["ReduceSum"]
