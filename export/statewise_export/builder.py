"""Writes ONNX nodes by calling operators by name: `op.Add(a, b)`. Values are their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from statewise.model.graph_io import TensorType

_DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}

Branch = Callable[["GraphBuilder"], Sequence[str]]
Body = Callable[["GraphBuilder", Sequence[str]], tuple[str, Sequence[str]]]
"""From the state to a boolean, whether to go on, and the next state."""


class GraphBuilder:
    """Collects nodes of one graph; builders of its subgraphs share its name counter, so no name shadows another."""

    def __init__(self, prefix: str = "v", names: Iterator[int] | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._names = names if names is not None else count()

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.node(op_type, inputs, 1, **attributes)[0]

    def node(self, op_type: str, inputs: Sequence[str], num_outputs: int, /, **attributes: Any) -> tuple[str, ...]:
        """Add a node; returns the names of its outputs."""
        outputs = tuple(self.new_name() for _ in range(num_outputs))
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), **attributes))
        return outputs

    def constant(self, value: ArrayLike, dtype: Any = np.int64) -> str:
        """A constant tensor."""
        return self.Constant(value=numpy_helper.from_array(np.asarray(value, dtype)))

    def when(self, condition: str, then: Branch, otherwise: Branch) -> tuple[str, ...]:
        """`If`: both branches may use any value of this graph, and give the same number of values."""
        branches = [self._branch(then), self._branch(otherwise)]
        return self.node("If", [condition], len(branches[0].output), then_branch=branches[0], else_branch=branches[1])

    def repeat(self, max_times: int, state: Sequence[str], body: Body) -> tuple[str, ...]:
        """`Loop`: compute the state anew, at least once, until the body says that it is enough."""
        inner = self.subgraph()
        names = [inner.new_name() for _ in state]
        goes_on, computed = body(inner, names)
        outputs = [inner.Identity(value) for value in (goes_on, *computed)]
        infos = [
            helper.make_tensor_value_info(inner.new_name(), TensorProto.INT64, []),
            helper.make_tensor_value_info(inner.new_name(), TensorProto.BOOL, []),
            *map(untyped, names),
        ]
        graph = helper.make_graph(inner.nodes, "body", infos, [untyped(name) for name in outputs])
        return self.node("Loop", [self.constant(max_times), "", *state], len(state), body=graph)

    def subgraph(self) -> GraphBuilder:
        """A builder for a graph nested in this one."""
        return GraphBuilder(self._prefix, self._names)

    def new_name(self) -> str:
        """A name that no other value has."""
        return f"{self._prefix}_{next(self._names)}"

    def _branch(self, branch: Branch) -> onnx.GraphProto:
        inner = self.subgraph()
        # A branch's output must be made inside it, even where it is a value of the outer graph.
        outputs = [inner.Identity(value) for value in branch(inner)]
        return helper.make_graph(inner.nodes, "branch", [], [untyped(name) for name in outputs])


def tensor_info(name: str, dtype: TensorType, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    """A value of that type and shape."""
    return helper.make_tensor_value_info(name, _DTYPES[dtype], shape)


def untyped(name: str) -> onnx.ValueInfoProto:
    """A value whose type the checker infers."""
    info = onnx.ValueInfoProto()
    info.name = name
    return info


def renamed_nodes(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Copies of the nodes with values renamed, in nested graphs too."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        for attribute in copy.attribute:
            if attribute.HasField("g"):
                inner = renamed_nodes(attribute.g.node, names)
                del attribute.g.node[:]
                attribute.g.node.extend(inner)
                for info in attribute.g.output:
                    info.name = names.get(info.name, info.name)
        copies.append(copy)
    return copies


def values_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of the values that nodes read, in nested graphs too."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                read |= values_read(attribute.g.node)
    return read
