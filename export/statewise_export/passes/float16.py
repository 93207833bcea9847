"""A pass that lowers a step to half precision, leaving in float32 the parts that could overflow or lose their meaning.

Requires: no control flow inside the step; weights within float16's range, by ConfigError otherwise.
Ensures: weights, state and products in float16, each weight the nearest to its float32; `output` and inputs of real
vectors in float32.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from statewise.errors import ConfigError
from statewise.model.graph_io import CHUNK, ITEMS, SOURCE

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

_HEAVY = frozenset(
    {"Attention", "Conv", "GRU", "Gemm", "GroupQueryAttention", "LSTM", "MatMul", "RNN", "TensorScatter"}
)
"""Operators that always compute in half precision, whatever they read."""

_WIDE = frozenset(
    {"Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Softmax", "Softplus", "Sqrt"}
)
"""Squares and sums leave float16's range (65,504), small means its precision. LayerNormalization has `stash_type`."""


def to_float16(traced: TracedStep) -> TracedStep:
    """Lower weights, state and products; norms, and nodes before the first and behind the last product, stay float32.

    Inputs of real vectors and `output` stay float32: raw units may lie outside float16's range.
    Raises ConfigError for control flow inside the step, and for a weight too large for float16.
    """
    for node in traced.nodes:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ConfigError(f"operator {node.op_type}: control flow inside a step cannot be exported in float16")
    return _Lowering(traced).run()


class _Lowering:
    """One walk over the nodes; `wide` holds the names of the values that stay float32."""

    def __init__(self, traced: TracedStep) -> None:
        self.traced = traced
        self.reals = traced.reals | {name for name, array in traced.weights.items() if array.dtype == np.float32}
        self.wide = {ITEMS, CHUNK + ITEMS, SOURCE} & traced.reals
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.casts: set[str] = set()
        self.tail = _tail(traced)

    def run(self) -> TracedStep:
        for index, node in enumerate(self.traced.nodes):
            self._lower(node, is_wide=index in self.tail or self._is_wide(node))
        return replace(self.traced, nodes=self.nodes, weights=self.weights, reals=frozenset(self.wide))

    def _is_wide(self, node: onnx.NodeProto) -> bool:
        """By its operator, or because all that it reads is wide; a constant takes the side of the others."""
        if node.op_type in _HEAVY | _WIDE:
            return node.op_type in _WIDE
        values = [name for name in node.input if name in self.reals and name not in self.traced.weights]
        return bool(values) and self.wide.issuperset(values)

    def _lower(self, node: onnx.NodeProto, *, is_wide: bool) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._read(name, is_wide=is_wide) for name in node.input]
        self.nodes.append(copy)
        if not is_wide:
            _narrow_attributes(copy)
        for index, name in enumerate(node.output):
            if name not in self.reals:
                continue
            # The graph's own outputs have the type that is declared of them, whoever makes them.
            must_be_wide = is_wide if name not in self._outputs else name == self.traced.output
            if must_be_wide:
                self.wide.add(name)
            if must_be_wide != is_wide:
                copy.output[index] = f"{name}.inner"
                self.nodes.append(_cast(copy.output[index], name, wide=must_be_wide))

    @property
    def _outputs(self) -> set[str]:
        return {self.traced.output, *self.traced.new_state}

    def _read(self, name: str, *, is_wide: bool) -> str:
        if name not in self.reals:
            if name in self.traced.weights:
                self.weights[name] = self.traced.weights[name]
            return name
        if name in self.traced.weights:
            return self._weight(name, is_wide=is_wide)
        if (name in self.wide) == is_wide:
            return name
        cast = f"{name}.{'float32' if is_wide else 'float16'}"
        if cast not in self.casts:
            self.casts.add(cast)
            self.nodes.append(_cast(name, cast, wide=is_wide))
        return cast

    def _weight(self, name: str, *, is_wide: bool) -> str:
        array = self.traced.weights[name]
        if is_wide:
            self.weights[f"{name}.float32"] = array
            return f"{name}.float32"
        if name not in self.weights:
            self.weights[name] = _narrow(array, name)
        return name


def _tail(traced: TracedStep) -> set[int]:
    """Nodes behind the last product: only the output depends on them."""
    readers = Counter(name for node in traced.nodes for name in node.input)
    inside: Counter[str] = Counter()
    """Number of each value's readers in the tail."""
    tail: set[int] = set()
    for index in reversed(range(len(traced.nodes))):
        node = traced.nodes[index]
        if node.op_type in _HEAVY or set(node.output) & set(traced.new_state):
            continue
        if all(name == traced.output or (readers[name] and inside[name] == readers[name]) for name in node.output):
            tail.add(index)
            inside.update(node.input)
    return tail


def _narrow(array: NDArray[Any], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        narrowed = array.astype(np.float16)
    if np.isinf(narrowed).any() and np.isfinite(array).all():
        raise ConfigError(
            f"weight {name!r} holds {np.abs(array).max():g}, beyond float16's 65504; export a float32 variant instead"
        )
    return narrowed


def _narrow_attributes(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        node.attribute.append(helper.make_attribute("value", zero))  # what it gives by default
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.t.data_type == TensorProto.FLOAT:
            array = _narrow(numpy_helper.to_array(attribute.t), node.op_type)
            attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))


def _cast(source: str, target: str, *, wide: bool) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT if wide else TensorProto.FLOAT16)
