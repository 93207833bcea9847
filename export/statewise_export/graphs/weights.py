"""Weights in one file beside the graphs, which all refer to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from statewise_export.builder import renamed_nodes
from statewise_export.trace.trace import TracedStep

ALIGNMENT = 4096
"""Offsets are whole pages, so that ONNX Runtime can map the file into memory."""

INLINE_LIMIT = 1024
"""Smaller tensors (bytes) stay in the graph, where the optimizer sees them as constants."""


def share_weights(traced: TracedStep, others: Mapping[str, NDArray[Any]], prefix: str) -> TracedStep:
    """The trace with the names of `others` for weights equal to theirs, and prefixed ones for everything else."""
    known = {_content(array): name for name, array in others.items()}
    results = {traced.output, *traced.new_state}
    names = {name: f"{prefix}.{name}" for node in traced.nodes for name in node.output if name and name not in results}
    names |= {name: known.get(_content(array), f"{prefix}.{name}") for name, array in traced.weights.items()}
    weights = {names[name]: array for name, array in traced.weights.items()}
    reals = frozenset(names.get(name, name) for name in traced.reals)
    return replace(traced, nodes=renamed_nodes(traced.nodes, names), weights=weights, reals=reals)


def _content(array: NDArray[Any]) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()


def write_weights(path: Path, weights: Mapping[str, NDArray[Any]]) -> list[TensorProto]:
    """Write the weights to `path`; returns initializers that refer to it by its name."""
    initializers = []
    with path.open("wb") as file:
        for name, array in sorted(weights.items()):
            if array.nbytes < INLINE_LIMIT:
                initializers.append(numpy_helper.from_array(array, name))
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            initializers.append(_external(name, array, path.name, file.tell()))
            file.write(np.ascontiguousarray(array).tobytes())
    return initializers


def _external(name: str, array: NDArray[Any], location: str, offset: int) -> TensorProto:
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
