"""The nodes of a quantized graph beside those of the float32 graph that it was made of.

All nodes must be the same but those that stand for a product with a large constant matrix, which are taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from statewise_export.passes.products import MIN_NUMBERS

Array = NDArray[Any]


@dataclass(frozen=True)
class Product:
    """A product of the float32 graph, and the nodes that stand for it in the quantized one."""

    matrix: Array
    """`[in, out]`."""
    bias: str | None
    """Name of the initializer that is added, where one is."""
    rows: str
    output: str
    nodes: tuple[onnx.NodeProto, ...]
    """In an order in which they can run; they make `output` of `rows`."""
    tensors: Mapping[str, Array]
    """Initializers that these nodes read, by name; the bias among them, where there is one."""

    @property
    def encoding(self) -> list[Array]:
        """The tensors that stand for the matrix."""
        return [tensor for name, tensor in self.tensors.items() if name != self.bias]


@dataclass
class Comparison:
    """Products found, and differences elsewhere."""

    products: list[Product] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def compare_nodes(quantized: onnx.GraphProto, plain: onnx.GraphProto, weights: Mapping[str, Array]) -> Comparison:
    """Compare a graph read from a file with the float32 graph and its weights."""
    comparer = _Comparer(quantized, weights)
    comparer.compare(plain.node)
    left = [node for index, node in enumerate(comparer.nodes) if index not in comparer.seen]
    if left:
        comparer.found.differences.append(f"{len(left)} nodes more, as {_spell(left[0])}")
    ends = [[value.name for value in graph.output] for graph in (quantized, plain)]
    if ends[0] != ends[1]:
        comparer.found.differences.append(f"outputs {ends[0]}, expected {ends[1]}")
    return comparer.found


class _Comparer:
    """Walks over the float32 graph, and marks what stands for each node in the quantized one."""

    def __init__(self, quantized: onnx.GraphProto, weights: Mapping[str, Array]) -> None:
        self.nodes = list(_every_node(quantized))
        self.seen: set[int] = set()
        self.found = Comparison()
        self._weights = weights
        self._initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in _every_tensor(quantized)}
        self._makers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        repeated = [name for name, n in Counter(n for node in self.nodes for n in node.output if n).items() if n > 1]
        if repeated:
            self.found.differences.append(f"value {repeated[0]} is made twice")

    def compare(self, plain: Sequence[onnx.NodeProto]) -> None:
        """Compare these nodes, and those of the graphs inside them."""
        for node in plain:
            if self._is_large_product(node):
                self._take_product(node)
            else:
                self._compare_node(node)

    def _is_large_product(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in {"MatMul", "Gemm"} or node.input[1] not in self._weights:
            return False
        matrix = self._weights[node.input[1]]
        return matrix.ndim == 2 and matrix.size >= MIN_NUMBERS

    def _compare_node(self, node: onnx.NodeProto) -> None:
        index = self._makers.get(next(filter(None, node.output)))
        other = None if index is None else self.nodes[index]
        if index is None or other is None:
            self.found.differences.append(f"{_spell(node)} is missing")
            return
        self.seen.add(index)
        if not self._is_same(other, node):
            self.found.differences.append(f"{_spell(other)} is not {_spell(node)}")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                self.compare(attribute.g.node)

    def _is_same(self, other: onnx.NodeProto, node: onnx.NodeProto) -> bool:
        """All but the nodes of nested graphs."""
        same = (other.op_type, other.domain, list(other.output)) == (node.op_type, node.domain, list(node.output))
        same = same and len(other.input) == len(node.input)
        same = same and all(self._is_same_value(*names) for names in zip(other.input, node.input, strict=True))
        return same and _attributes(other) == _attributes(node)

    def _is_same_value(self, name: str, plain: str) -> bool:
        if name in self._initializers and plain in self._weights:
            ours, theirs = self._initializers[name], self._weights[plain]
            return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        return name == plain

    def _take_product(self, node: onnx.NodeProto) -> None:
        rows, output = node.input[0], node.output[0]
        within = self._between(rows, output)
        if within is None:
            self.found.differences.append(f"{_spell(node)}: nothing makes {output} of {rows}")
            return
        self.seen |= set(within)
        nodes = tuple(self.nodes[index] for index in within)
        matrix = self._weights[node.input[1]]
        transposed = any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
        read = {name for inner in nodes for name in inner.input if name in self._initializers}
        tensors = {name: self._initializers[name] for name in sorted(read)}
        bias = next((own for name in node.input[2:] for own in read if self._is_same_value(own, name)), None)
        if len(node.input) > 2 and bias is None:
            self.found.differences.append(f"{_spell(node)}: its bias is not read")
        product = Product(matrix.T if transposed else matrix, bias, rows, output, nodes, tensors)
        self.found.products.append(product)

    def _between(self, rows: str, output: str) -> list[int] | None:
        """Indices of the nodes that make `output` of `rows`; None where they read anything else."""
        wanted, within = [output], set()
        while wanted:
            name = wanted.pop()
            index = self._makers.get(name)
            if name == rows or not name or name in self._initializers or index in within:
                continue
            if index is None or any(attribute.HasField("g") for attribute in self.nodes[index].attribute):
                return None
            within.add(index)
            wanted += self.nodes[index].input
        # Outer graphs come first in the walk, and nodes of one graph in an order in which they run.
        return sorted(within)


def _every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph and of those inside it, those around a nested graph first."""
    yield from graph.node
    for inner in _nested(graph):
        yield from _every_node(inner)


def _every_tensor(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for inner in _nested(graph):
        yield from _every_tensor(inner)


def _nested(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g


def _attributes(node: onnx.NodeProto) -> list[bytes]:
    """Return the node's attributes as bytes; of nested graphs only inputs and outputs."""
    return sorted(_bytes(attribute) for attribute in node.attribute)


def _bytes(attribute: onnx.AttributeProto) -> bytes:
    if not attribute.HasField("g"):
        return attribute.SerializeToString(deterministic=True)
    ends = [[value.name for value in part] for part in (attribute.g.input, attribute.g.output)]
    return f"{attribute.name}: {ends}".encode()


def _spell(node: onnx.NodeProto) -> str:
    return f"{node.op_type} -> {', '.join(node.output)}"
