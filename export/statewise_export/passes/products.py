"""A pass that replaces the products of a traced step with constant matrices, in nested graphs too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from statewise.errors import ConfigError
from statewise_export.builder import GraphBuilder, values_read

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep

MIN_NUMBERS = 2**16
"""Smaller matrices stay as they are: they lie in a core's own cache, and quantizing the row costs what it saves
(256x256 at 1 and 16 rows, us: float32 10 and 14, int8 17 and 16; 512x512: 20 and 52 against 23 and 28)."""

Array = NDArray[Any]


class Scheme(Protocol):
    """Encoding of a matrix, and the nodes that multiply rows with it."""

    def encode(self, matrix: NDArray[np.float32]) -> dict[str, Array]:
        """Tensors, by a short name each, that stand for a matrix `[in, out]`."""

    def prepare(self, op: GraphBuilder, rows: str) -> tuple[str, ...]:
        """Values made of `rows` (`[..., in]`) once, for all matrices that these are multiplied with."""

    def multiply(
        self, op: GraphBuilder, prepared: tuple[str, ...], tensors: dict[str, str], shape: tuple[int, int]
    ) -> str:
        """The product `[..., out]`; `tensors` has the names of what `encode` gave, `shape` is `[in, out]`."""


def replace_products(traced: TracedStep, scheme: Scheme) -> TracedStep:
    """The step with every MatMul and Gemm by a constant matrix of MIN_NUMBERS or more in that scheme.

    Raises ConfigError where the model has no such matrix.
    """
    rewriter = _Rewriter(scheme, traced.weights)
    nodes = rewriter.rewrite(traced.nodes, {})
    if not rewriter.encoded:
        raise ConfigError(
            f"--variant: no matrix of this model has {MIN_NUMBERS:,} numbers, so that quantizing it "
            "would gain nothing; export it as cpu-float32"
        )
    read = values_read(nodes)
    weights = traced.weights | rewriter.encoded
    return replace(traced, nodes=nodes, weights={name: array for name, array in weights.items() if name in read})


@dataclass
class _Rewriter:
    scheme: Scheme
    weights: dict[str, Array]
    encoded: dict[str, Array] = field(default_factory=dict)
    names: dict[tuple[str, bool], dict[str, str]] = field(default_factory=dict)
    """Names of the tensors that replace a matrix, by its name and whether it is read transposed."""
    outer: GraphBuilder = field(default_factory=lambda: GraphBuilder("product"))

    def rewrite(self, nodes: Iterable[onnx.NodeProto], around: dict[str, tuple[str, ...]]) -> list[onnx.NodeProto]:
        """The nodes anew; `around` are the rows that the graphs around these nodes have prepared."""
        op, prepared = self.outer.subgraph(), dict(around)
        for node in nodes:
            if not self._is_replaced(node):
                op.nodes.append(self._with_subgraphs(node, prepared))
                continue
            rows, *bias = node.input[0], *node.input[2:]
            if rows not in prepared:
                prepared[rows] = self.scheme.prepare(op, rows)
            tensors, shape = self._encoded(node.input[1], transposed=_attributes(node).get("transB", 0) == 1)
            product = self.scheme.multiply(op, prepared[rows], tensors, shape)
            if bias:
                op.Add(product, bias[0])
            # Under the name by which the other nodes know it.
            op.nodes[-1].output[0] = node.output[0]
        return op.nodes

    def _is_replaced(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in {"MatMul", "Gemm"} or node.input[1] not in self.weights:
            return False
        matrix, attributes = self.weights[node.input[1]], _attributes(node)
        plain = attributes.get("transA", 0) == 0 and all(attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        return plain and matrix.ndim == 2 and matrix.size >= MIN_NUMBERS

    def _encoded(self, name: str, *, transposed: bool) -> tuple[dict[str, str], tuple[int, int]]:
        matrix = self.weights[name].T if transposed else self.weights[name]
        if (name, transposed) not in self.names:
            tensors = self.scheme.encode(matrix)
            names = {key: f"{name}.{'t.' if transposed else ''}{key}" for key in tensors}
            self.names[name, transposed] = names
            self.encoded |= {names[key]: tensor for key, tensor in tensors.items()}
        return self.names[name, transposed], (matrix.shape[0], matrix.shape[1])

    def _with_subgraphs(self, node: onnx.NodeProto, prepared: dict[str, tuple[str, ...]]) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if attribute.HasField("g"):
                inner = self.rewrite(attribute.g.node, prepared)
                del attribute.g.node[:]
                attribute.g.node.extend(inner)
        return copy


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
