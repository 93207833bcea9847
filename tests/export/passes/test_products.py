"""Quantized products: the node patterns against a NumPy statement of their rules; rows keep to themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from statewise.errors import ConfigError
from statewise_export.passes.int4 import BLOCK, Int4, quantize_blocks
from statewise_export.passes.int8 import Int8
from statewise_export.passes.products import MIN_NUMBERS, replace_products
from statewise_export.trace.trace import TracedStep
from statewise_server.runtime.ort.onnx import onnxruntime

Array = NDArray[Any]
rng = np.random.default_rng(5)
MATRIX = rng.standard_normal((256, 300)).astype(np.float32)
BIAS = rng.standard_normal(300).astype(np.float32)


def session(scheme: Any, *, gemm: bool = False) -> Any:
    """Run the pass over one product and load what it made."""
    node = helper.make_node("MatMul", ["rows", "matrix"], ["product"])
    if gemm:
        node = helper.make_node("Gemm", ["rows", "matrix", "bias"], ["product"], transB=1)
    weights = {"matrix": np.ascontiguousarray(MATRIX.T) if gemm else MATRIX, "bias": BIAS}
    traced = replace_products(TracedStep([node], weights, "product", (), frozenset({"rows", "product"})), scheme)
    assert not {"MatMul", "Gemm"} & {n.op_type for n in traced.nodes}
    assert "matrix" not in traced.weights
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        traced.nodes,
        "product",
        [info("rows", TensorProto.FLOAT, ["row", 256])],
        [info("product", TensorProto.FLOAT, ["row", 300])],
        [numpy_helper.from_array(array, name) for name, array in traced.weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


SESSIONS = {"int8": session(Int8()), "int4": session(Int4())}


def run(name: str, rows: Array) -> Array:
    (product,) = SESSIONS[name].run(None, {"rows": rows.astype(np.float32)})
    return np.asarray(product)


def stated(rows: Array) -> Array:
    """The rule of 8 bits: each row and each column in units of a 127th of its largest number."""
    tiny = np.float32(1e-30)
    row_scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), tiny)
    column_scale = np.maximum(np.abs(MATRIX).max(axis=0), tiny) / np.float32(127)
    numbers = np.rint(rows * (np.float32(127) / row_scale)).astype(np.int64)
    whole = numbers @ np.rint(MATRIX / column_scale).astype(np.int64)
    return whole.astype(np.float32) * (column_scale / np.float32(127)) * row_scale


sizes = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (3, 256), elements=sizes, fill=st.just(0.0)))
def test_the_int8_nodes_compute_the_stated_rule(rows: NDArray[np.float32]) -> None:
    """Whatever the rows, zeros and outliers too, the graph gives what the rule in NumPy gives, to the last bit."""
    np.testing.assert_array_equal(run("int8", rows), stated(rows))


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.02), ("int4", 0.15)])
def test_products_are_close(name: str, limit: float) -> None:
    """The error is small beside the products' own size."""
    rows = rng.standard_normal((20, 256)).astype(np.float32)
    error = run(name, rows) - rows @ MATRIX

    assert error.std() < limit * (rows @ MATRIX).std()


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("num_rows", [2, 3, 5, 8, 17, 64])
def test_an_outlier_leaves_the_other_rows_alone(name: str, num_rows: int) -> None:
    """Beside a row a million times as large, every row is bit for bit what it is alone."""
    rows = rng.standard_normal((num_rows, 256)).astype(np.float32)
    rows[0] *= 1e6
    together = run(name, rows)

    for row in range(num_rows):
        np.testing.assert_array_equal(run(name, rows[row : row + 1])[0], together[row])


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 100, 255])
def test_a_row_that_is_not_finite_stays_so_alone(name: str, value: float, place: int) -> None:
    """NaN and infinity anywhere in a row make its whole product not finite, and no other row's."""
    rows = rng.standard_normal((3, 256)).astype(np.float32)
    rows[1, place] = value
    product = run(name, rows)

    assert not np.isfinite(product[1]).any()
    assert np.isfinite(product[[0, 2]]).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_row_of_zeros_gives_zeros(name: str) -> None:
    """Nothing is divided by a largest number of 0."""
    np.testing.assert_array_equal(run(name, np.zeros((2, 256))), 0.0)


@pytest.mark.parametrize("scheme", [Int8(), Int4()])
def test_gemm_is_replaced_with_its_bias(scheme: Any) -> None:
    """A Gemm by a transposed matrix is the same product, and its bias is added in float32."""
    rows = rng.standard_normal((4, 256)).astype(np.float32)
    (with_bias,) = session(scheme, gemm=True).run(None, {"rows": rows})

    np.testing.assert_array_equal(with_bias, run("int8" if isinstance(scheme, Int8) else "int4", rows) + BIAS)


def test_a_model_of_small_matrices_is_not_quantized() -> None:
    """Where no matrix is large enough to gain, the message says how large and what to export instead."""
    matrix = np.ones((MIN_NUMBERS // 4 - 1, 4), np.float32)
    node = helper.make_node("MatMul", ["rows", "matrix"], ["product"])

    with pytest.raises(ConfigError, match=r"has 65,536 numbers.*cpu-float32"):
        replace_products(TracedStep([node], {"matrix": matrix}, "product", (), frozenset({"rows", "product"})), Int8())


def test_blocks_are_rounded_well() -> None:
    """Searching the scale beats rounding by the largest number, and a block of zeros stays zeros."""
    blocks = rng.standard_normal((50, 20, BLOCK)).astype(np.float32)
    blocks[0, 0] = 0.0
    numbers, scales = quantize_blocks(blocks)
    plain = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(7)
    plain_error = np.rint(blocks / np.where(plain == 0, 1, plain)) * plain - blocks

    assert np.square(numbers * scales[..., None] - blocks).sum() < 0.75 * np.square(plain_error).sum()
    assert not numbers[0, 0].any()
    assert numbers.min() >= -8
    assert numbers.max() <= 7
