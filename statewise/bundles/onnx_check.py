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

if TYPE_CHECKING:
    from statewise.bundles.manifest import Variant
    from statewise.bundles.reader import Bundle
    from statewise.model.spec import ModelSpec

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})

# Operators that read files or compiled code of their own.
_FORBIDDEN_OPERATORS = frozenset({"EPContext"})

_ELEMENTS_PER_BYTE: dict[int, int] = {
    TensorProto.INT4: 2,
    TensorProto.UINT4: 2,
    TensorProto.FLOAT4E2M1: 2,
    TensorProto.INT2: 4,
    TensorProto.UINT2: 4,
}


_STATE_NAMES = ("state.", "new_state.", "chunk.state.", "chunk.new_state.")


def check_graphs(bundle: Bundle, variant_name: str) -> None:
    """Check the graphs of a variant.

    Raises BundleError, naming the file, for what is no ONNX model, an operator outside ALLOWED_DOMAINS,
    weights that lie outside the bundle or are not as long as declared, and state names that are not the
    manifest's.
    """
    variant = bundle.variant(variant_name)
    sizes = {name: bundle.path(name).stat().st_size for name in variant.data}
    for name in variant.graphs:
        try:
            model = _parse(bundle.path(name))
            _check_model(model, sizes)
            _check_state_names(model, *_state_names(name, variant, bundle.manifest.model))
        except _RefusedError as refused:
            raise BundleError(f"{name}: {refused}") from refused


def _state_names(name: str, variant: Variant, model: ModelSpec) -> tuple[set[str], set[str]]:
    """What a graph reads and what it writes of the state, as its inputs and outputs are to be named."""
    reads = {state.name for state in model.state}
    writes = {state.name for state in model.state if state.kind != "memory"}
    if name in (variant.choose, *variant.one_shot_graphs.values()):
        reads, writes = set(), set()
    if name == variant.encode:
        reads, writes = set(), {state.name for state in model.state if state.kind != "cache"}
    prefixes = ("", "chunk.") if name == variant.mixed else ("",)
    return (
        {f"{prefix}state.{state}" for prefix in prefixes for state in reads},
        {f"{prefix}new_state.{state}" for prefix in prefixes for state in writes},
    )


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


def _check_state_names(model: ModelProto, reads: set[str], writes: set[str]) -> None:
    sides = (("input", model.graph.input, reads), ("output", model.graph.output, writes))
    for what, values, declared in sides:
        states = {value.name for value in values if value.name.startswith(_STATE_NAMES)}
        if states != declared:
            missing, unknown = sorted(declared - states), sorted(states - declared)
            raise _RefusedError(
                f"its state {what}s are not the manifest's"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; not in the manifest: {', '.join(unknown)}" if unknown else "")
            )
