"""Looks through a bundle's graphs before ONNX Runtime, a native library, reads them.

The walk is generic, over every message in the file, so that a node or a tensor cannot hide in a subgraph, a
function, an attribute or a field that later versions of ONNX add.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError, Message
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TensorShapeProto,
    helper,
)

from statewise.errors import BundleError
from statewise.model import graph_io
from statewise.model.graph_io import GraphIO
from statewise.model.sampling_inputs import SAMPLING_INPUTS

if TYPE_CHECKING:
    from statewise.bundles.manifest import Variant
    from statewise.bundles.reader import Bundle
    from statewise.model.spec import ModelSpec

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})

# Operators that read files or compiled code of their own.
_FORBIDDEN_OPERATORS = frozenset({"EPContext"})

_STATE_OUTPUTS = (graph_io.state_output(""), graph_io.state_output("", graph_io.CHUNK))

_ELEMENTS_PER_BYTE: dict[int, int] = {
    TensorProto.INT4: 2,
    TensorProto.UINT4: 2,
    TensorProto.FLOAT4E2M1: 2,
    TensorProto.INT2: 4,
    TensorProto.UINT2: 4,
}


def check_graphs(bundle: Bundle, variant_name: str) -> None:
    """Check the graphs of a variant.

    Raises BundleError, naming the file, for what is no ONNX model, an operator outside ALLOWED_DOMAINS,
    weights that lie outside the bundle or are not as long as declared, and inputs and outputs that are not those
    that the manifest's model has.
    """
    variant = bundle.variant(variant_name)
    sizes = {name: bundle.path(name).stat().st_size for name in variant.data}
    for name in variant.graphs:
        try:
            model = _parse(bundle.path(name))
            _check_model(model, sizes)
            _check_names(model, _io_of(name, variant, bundle.manifest.model))
        except _RefusedError as refused:
            raise BundleError(f"{name}: {refused}") from refused


def _io_of(name: str, variant: Variant, model: ModelSpec) -> GraphIO:
    """The inputs and outputs that a graph is to have; an inspection's outputs are the plugin's own."""
    files = {
        variant.step: graph_io.model_io if variant.choose else graph_io.step_io,
        variant.choose: graph_io.choose_io,
        variant.decode: graph_io.decode_io,
        variant.mixed: graph_io.mixed_io,
        variant.encode: graph_io.encode_io,
        variant.predict: graph_io.predict_io,
        variant.score: graph_io.score_io,
    }
    return files[name](model) if name in files else graph_io.inspect_io(model, {})


class _RefusedError(Exception):
    """Why a graph is refused; the caller adds the file's name."""


def _parse(path: Path) -> ModelProto:
    try:
        return ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise _RefusedError("not an ONNX model") from error


def _check_model(model: ModelProto, sizes: dict[str, int]) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    for message in _messages(model):
        if isinstance(message, NodeProto):
            _check_operator(message.domain, message.op_type, functions)
        elif isinstance(message, FunctionProto) and message.domain in ALLOWED_DOMAINS - {"com.microsoft"}:
            raise _RefusedError(f"redefines operator {message.name} of ONNX itself")
        elif isinstance(message, TensorProto):
            _check_tensor(message, sizes)
        elif isinstance(message, SparseTensorProto):
            raise _RefusedError("holds a sparse tensor, which is not supported")
        elif isinstance(message, TensorShapeProto.Dimension) and message.dim_value < 0:
            raise _RefusedError(f"declares a dimension of size {message.dim_value}")


def _messages(root: Message) -> Iterator[Message]:
    """Yield every message inside this one and itself; not those in tensors, which would copy their data."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        if isinstance(message, TensorProto):
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _check_operator(domain: str, op_type: str, functions: set[tuple[str, str]]) -> None:
    if op_type in _FORBIDDEN_OPERATORS:
        raise _RefusedError(f"uses operator {op_type}, which is not allowed in a bundle")
    if domain not in ALLOWED_DOMAINS and (domain, op_type) not in functions:
        raise _RefusedError(
            f"uses operator {op_type} of domain {domain!r}; only ONNX's own and com.microsoft's are allowed"
        )


def _check_tensor(tensor: TensorProto, sizes: dict[str, int]) -> None:
    dims = list(tensor.dims)
    if any(size < 0 for size in dims):
        raise _RefusedError(f"weight {tensor.name!r} has a negative dimension: {dims}")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise _RefusedError(f"weight {tensor.name!r} has no known data type: {tensor.data_type}")
    count = math.prod(dims)  # Python's integers do not overflow
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        _check_external(tensor, _num_bytes(tensor, count), sizes)
    elif not _holds(tensor, count):
        raise _RefusedError(f"weight {tensor.name!r} declares {dims}, which is not what it holds")


def _num_bytes(tensor: TensorProto, count: int) -> int:
    packed = _ELEMENTS_PER_BYTE.get(tensor.data_type)
    if packed:
        return -(-count // packed)
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _holds(tensor: TensorProto, count: int) -> bool:
    """Whether the data inside the message are as many as declared."""
    if tensor.HasField("raw_data"):
        held_bytes: int = len(tensor.raw_data)
        return held_bytes == _num_bytes(tensor, count)
    held: int = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return held == 2 * count
    return held == -(-count // _ELEMENTS_PER_BYTE.get(tensor.data_type, 1))


def _check_external(tensor: TensorProto, num_bytes: int, sizes: dict[str, int]) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    # One rule for `..`, absolute paths, and ONNX Runtime's own markers for addresses in memory.
    if location not in sizes:
        raise _RefusedError(
            f"weight {tensor.name!r} lies in {location!r}, which is none of the data files that the manifest "
            f"names for the variant ({', '.join(sizes) or 'none'})"
        )
    offset = _natural(tensor, entries, "offset", 0)
    length = _natural(tensor, entries, "length", num_bytes)
    if length != num_bytes:
        raise _RefusedError(f"weight {tensor.name!r} declares {list(tensor.dims)}, but its length is {length} bytes")
    if offset + length > sizes[location]:
        raise _RefusedError(f"weight {tensor.name!r} ends beyond {location} ({sizes[location]} bytes)")


def _natural(tensor: TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _RefusedError(f"weight {tensor.name!r} has {key} {text!r}, which is no size in bytes")
    return int(text)


def _check_names(model: ModelProto, io: GraphIO) -> None:
    """Refuse a graph that the runtime could not feed, or whose results it would not find.

    A graph may lack sampling rules: requests that need one are refused. Further outputs are allowed.
    """
    weights = {weight.name for weight in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - weights
    declared = {tensor.name for tensor in io.inputs}
    rules = {rule.name for rule in SAMPLING_INPUTS}
    _check_side("input", missing=declared - rules - inputs, unknown=inputs - declared)
    outputs = {value.name for value in model.graph.output}
    expected = {tensor.name for tensor in io.outputs} - {graph_io.OUTPUT}
    states = {name for name in outputs if name.startswith(_STATE_OUTPUTS)}
    _check_side("output", missing=expected - outputs, unknown=states - expected)


def _check_side(side: str, missing: set[str], unknown: set[str]) -> None:
    if missing or unknown:
        raise _RefusedError(
            f"its {side}s are not those that this release expects of the manifest's model"
            + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
            + (f"; unknown: {', '.join(sorted(unknown))}" if unknown else "")
            + "; export the model again"
        )
