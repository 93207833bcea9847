"""A pass that merges products of the same rows with several constant matrices, as query, key and value.

Requires: MatMul by constant matrices `[in, out]`; their additions read by nothing else.
Ensures: one MatMul for each group, split under the old value names; the same sums in the same order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from statewise_export.builder import GraphBuilder, values_read

if TYPE_CHECKING:
    from statewise_export.trace.trace import TracedStep


@dataclass(frozen=True)
class _Product:
    """A MatMul with a constant matrix, and the constant that is added to it, if one is."""

    node: int
    """Index of the MatMul."""
    rows: str
    matrix: str
    bias: str | None
    addition: int | None
    """Index of the Add."""
    output: str


def merge_products(traced: TracedStep) -> TracedStep:
    """Merge products, so that rows are read, and for lower precision quantized, once for all their matrices."""
    groups: dict[tuple[str, bool], list[_Product]] = defaultdict(list)
    for product in _products(traced):
        groups[product.rows, product.bias is None].append(product)
    merged = {group[0].node: group for group in groups.values() if len(group) > 1}
    gone = {index for group in merged.values() for p in group for index in (p.node, p.addition)}
    op = GraphBuilder("merged")
    weights = dict(traced.weights)
    for index, node in enumerate(traced.nodes):
        if index in merged:
            _add_merged(op, merged[index], weights)
        elif index not in gone:
            op.nodes.append(node)
    read = values_read(op.nodes)
    return replace(traced, nodes=op.nodes, weights={name: array for name, array in weights.items() if name in read})


def _products(traced: TracedStep) -> list[_Product]:
    readers = Counter(name for node in traced.nodes for name in values_read([node]))
    readers.update((traced.output, *traced.new_state))
    additions = {node.input[0]: index for index, node in enumerate(traced.nodes) if node.op_type == "Add"}
    return [
        _product(traced, index, node, readers, additions)
        for index, node in enumerate(traced.nodes)
        if node.op_type == "MatMul" and node.input[1] in traced.weights and traced.weights[node.input[1]].ndim == 2
    ]


def _product(
    traced: TracedStep, index: int, node: onnx.NodeProto, readers: Counter[str], additions: dict[str, int]
) -> _Product:
    rows, matrix = node.input
    addition = additions.get(node.output[0])
    if addition is not None and readers[node.output[0]] == 1:
        bias, output = traced.nodes[addition].input[1], traced.nodes[addition].output[0]
        if bias in traced.weights and traced.weights[bias].shape == traced.weights[matrix].shape[1:]:
            return _Product(index, rows, matrix, bias, addition, output)
    return _Product(index, rows, matrix, None, None, node.output[0])


def _add_merged(op: GraphBuilder, group: list[_Product], weights: dict[str, np.ndarray]) -> None:
    names = [product.matrix for product in group]
    sizes = [weights[name].shape[1] for name in names]
    weights["+".join(names)] = np.concatenate([weights[name] for name in names], axis=1)
    product = op.MatMul(group[0].rows, "+".join(names))
    biases = [product.bias for product in group if product.bias is not None]
    if biases:
        bias = "+".join((*names, "bias"))
        weights[bias] = np.concatenate([weights[name] for name in biases])
        product = op.Add(product, bias)
    op.node("Split", [product, op.constant(sizes)], len(group), axis=-1)
    # Under the names by which the other nodes know them.
    op.nodes[-1].output[:] = [product.output for product in group]
