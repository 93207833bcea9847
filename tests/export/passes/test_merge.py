"""Products of the same rows, merged into one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from statewise.plugins import load_plugin
from statewise_export.passes.merge import merge_products
from statewise_export.trace.trace import TracedStep, trace_step
from statewise_server.runtime.ort.onnx import onnxruntime

rng = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(traced: TracedStep, outputs: list[str], rows: np.ndarray) -> list[np.ndarray]:
    graph = helper.make_graph(
        traced.nodes,
        "step",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["row", 40])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["row", None]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in traced.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(outputs, {"rows": rows})]


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)


def test_merged_products_are_the_same_products() -> None:
    """With a bias, without one, of different widths: every value keeps its name and its numbers."""
    nodes = [
        node("MatMul", ["rows", "a"], "a.product"),
        node("Add", ["a.product", "a.bias"], "a.out"),
        node("MatMul", ["rows", "b"], "b.out"),
        node("MatMul", ["rows", "c"], "c.product"),
        node("Add", ["c.product", "c.bias"], "c.out"),
        node("MatMul", ["rows", "d"], "d.out"),
        # Read twice, so the sum is no bias of the product alone.
        node("Add", ["d.out", "d.bias"], "d.sum"),
        node("Relu", ["d.out"], "d.relu"),
        node("Relu", ["b.out"], "b.relu"),
    ]
    shapes = {"a": (40, 8), "b": (40, 24), "c": (40, 3), "d": (40, 5)}
    biases = {"a.bias": (8,), "c.bias": (3,), "d.bias": (5,)}
    traced = TracedStep(nodes, weights(**shapes, **biases), "a.out", (), frozenset())
    outputs, rows = ["a.out", "c.out", "d.out", "d.sum", "b.relu"], rng.standard_normal((6, 40)).astype(np.float32)

    merged = merge_products(traced)

    assert Counter(n.op_type for n in merged.nodes)["MatMul"] == 2
    assert merged.weights.keys().isdisjoint(shapes)
    for before, after in zip(run(traced, outputs, rows), run(merged, outputs, rows), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_a_transformer_reads_its_rows_once_for_query_key_and_value() -> None:
    """Four products to a layer instead of six; with a gated feed-forward layer four instead of seven."""
    plugin = load_plugin("transformer")
    sizes = {"vocabulary_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 40}
    counts = []
    for activation in ("gelu", "swiglu"):
        config = plugin.config_class(**sizes, activation=activation)
        torch.manual_seed(0)
        traced = trace_step(plugin.build(config), plugin.spec(config))
        merged = merge_products(traced)
        counts.append([sum(n.op_type == "MatMul" for n in t.nodes) for t in (traced, merged)])

    assert counts == [[12, 8], [14, 8]]
