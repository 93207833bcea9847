"""Bindings that stay: a run gives what it would give through a binding of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.bound_run import BoundRun


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """`sum` `[row, time]` of two inputs, and `first` `[row]`, its first column."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["sum", "zero"], ["first"], axis=1),
    ]
    inputs = [info(name, TensorProto.INT64, ["row", "time"]) for name in ("a", "b")]
    outputs = [info("sum", TensorProto.INT64, ["row", "time"]), info("first", TensorProto.INT64, ["row"])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return create_session(model.SerializeToString(), intra_op_threads=1)


@pytest.mark.parametrize("keeps", [True, False])
def test_each_run_reads_its_own_inputs(session: onnxruntime.InferenceSession, keeps: bool) -> None:
    """Inputs may change their values, their shape and their layout, and results keep what they were given."""
    bound = BoundRun(session, ["first", "sum"], keeps=keeps)
    rng = np.random.default_rng(0)
    expected, actual = [], []
    for time in (2, 2, 3, 2, 2):
        a, b = rng.integers(0, 99, (4, time)), rng.integers(0, 99, (time, 4)).T
        expected.append([(a + b)[:, 0], a + b])
        actual.append(bound.run({"a": a, "b": b}, (time,)))
        a[:] = -1

    for results, wanted in zip(actual, expected, strict=True):
        for result, array in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(result, array)


def test_a_failed_run_leaves_the_binding_usable(session: onnxruntime.InferenceSession) -> None:
    """Inputs that do not fit together fail that run alone."""
    bound = BoundRun(session, ["sum"], keeps=True)
    ones = np.ones((2, 2), np.int64)
    bound.run({"a": ones, "b": ones}, (2,))
    with pytest.raises(Exception, match="Add"):
        bound.run({"a": ones, "b": np.ones((2, 5), np.int64)}, (5,))

    np.testing.assert_array_equal(bound.run({"a": ones, "b": 2 * ones}, (2,))[0], 3 * ones)


def test_on_a_device_only_inputs_that_changed_are_bound_again(
    session: onnxruntime.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binding copies an input to the device; the same values again are not."""
    bound = BoundRun(session, ["sum"], keeps=False)
    a, b = np.ones((2, 2), np.int64), np.full((2, 2), 2)
    bound.run({"a": a, "b": b}, (2,))
    names: list[str] = []
    healthy = bound.binding.bind_input

    def bind_input(name: str, *arguments: Any) -> None:
        names.append(name)
        healthy(name, *arguments)

    monkeypatch.setattr(bound.binding, "bind_input", bind_input)
    results = [bound.run({"a": a, "b": each}, (2,))[0].tolist() for each in (b, b + 1, b)]

    assert results == [[[3, 3], [3, 3]], [[4, 4], [4, 4]], [[3, 3], [3, 3]]]
    assert names == ["b", "b"]
