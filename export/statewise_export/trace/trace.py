"""PyTorch step function -> ONNX nodes and weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import onnx.inliner
import onnx_ir as ir
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.errors import ConfigError
from statewise.model.graph_io import (
    OUTPUT,
    GraphIO,
    GraphTensor,
    encode_io,
    inspect_io,
    mixed_io,
    model_io,
    predict_io,
    whole_inputs,
)
from statewise.model.spec import InputSpec, ModelSpec, TokenInput
from statewise.modules import Embeds, Encodes, Inspects, MixedStep, StepModule, require
from statewise_export.trace.traced_modules import (
    Answer,
    Embedding,
    FirstState,
    LastOutput,
    MixedOutput,
    NextOutputs,
    Shown,
)
from statewise_training.families.shared.lowering import attention_lowering
from statewise_training.families.shared.state import zero_state

State = tuple[Tensor, ...]

OPSET = 21
"""The newest opset whose recurrent operators have CUDA kernels in ONNX Runtime."""

# Traced with sizes that no dimension shares, so that none is taken for another or for a constant.
_TRACE_ROWS, _TRACE_TIME, _TRACE_POSITIONS = 3, 5, 11


@dataclass(frozen=True)
class TracedStep:
    """One step as nodes; its values are named as in the bundle's graphs."""

    nodes: Sequence[onnx.NodeProto]
    weights: dict[str, NDArray[Any]]
    """Initializers by name, in the layout of the ONNX operators."""
    output: str
    """Name of the head's output: of a step at each row's last real item, `[row, size]`; of an inspection, its first.

    Empty where state is all."""
    new_state: tuple[str, ...]
    """Names of all other results; memories are not among them, being only read."""
    reals: frozenset[str]
    """Names of the float32 values, weights aside."""


def trace_step(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace the step function with dynamic rows and time."""
    row, time = torch.export.Dim("row"), torch.export.Dim("time")
    state = zero_state(spec, _TRACE_ROWS, _TRACE_POSITIONS)
    example = (*_example_rows(spec), state)
    sizes = ({0: row, 1: time}, {0: row}, _state_sizes(spec, {"row": row, "position": torch.export.Dim("position")}))
    return _trace(LastOutput(require(module, StepModule), spec), example, sizes, model_io(spec))


def trace_encode(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace what makes the first state of a source, with dynamic rows and source items."""
    assert spec.source is not None
    assert spec.max_source_positions is not None
    longest = spec.max_source_positions
    # Shorter than the longest one, where it can be, so that there is something to pad.
    length = longest if longest <= 2 else min(_TRACE_TIME, longest - 1)
    example = (_example_items(spec.source, _TRACE_ROWS, length), torch.full((_TRACE_ROWS,), length))
    row = torch.export.Dim("row")
    # A size of 1 is taken for a constant, and is one only here.
    time = {} if longest == 1 else {1: torch.export.Dim("time", max=longest)}
    return _trace(
        FirstState(require(module, Encodes)), example, ({0: row} | time, {0: row}), encode_io(spec), has_output=False
    )


def trace_mixed(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace the mixed step: one item of each of some rows, and a chunk of one more."""
    row, time, position = (torch.export.Dim(name) for name in ("row", "time", "position"))
    state, chunk_state = zero_state(spec, _TRACE_ROWS, _TRACE_POSITIONS), zero_state(spec, 1, _TRACE_POSITIONS)
    example = (
        _example_items(spec.input, _TRACE_ROWS, 1),
        state,
        _example_items(spec.input, 1, _TRACE_TIME),
        chunk_state,
    )
    sizes = (
        {0: row},
        _state_sizes(spec, {"row": row, "position": position}),
        {1: time},
        _state_sizes(spec, {"position": position}),
    )
    return _trace(MixedOutput(require(module, MixedStep), spec), example, sizes, mixed_io(spec))


def trace_prediction(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace what the model says of whole sequences, with dynamic rows and time."""
    if spec.generates:
        return _trace_whole(Embedding(require(module, Embeds)), spec, predict_io(spec))
    return _trace_whole(Answer(require(module, StepModule)), spec, predict_io(spec))


def trace_next_outputs(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace the outputs that predict every item of whole sequences but the first, `[row, time - 1, size]`."""
    outputs = GraphTensor(OUTPUT, "float32", ("row", "previous", spec.head.output_size))
    return _trace_whole(NextOutputs(require(module, StepModule), spec), spec, GraphIO(whole_inputs(spec), (outputs,)))


def trace_inspection(module: torch.nn.Module, spec: ModelSpec) -> TracedStep:
    """Trace what the module shows of whole sequences, with dynamic rows and time. Raises as `shown_shapes`."""
    return _trace_whole(Shown(require(module, Inspects)), spec, inspect_io(spec, shown_shapes(module, spec)))


def shown_shapes(module: torch.nn.Module, spec: ModelSpec) -> dict[str, tuple[str | int, ...]]:
    """Shapes by name of what the module shows of whole sequences.

    Raises ConfigError where that is something else than the plugin API says.
    """
    with torch.inference_mode():
        shown = require(module.eval(), Inspects).inspect(*_example_rows(spec))
    if not shown:
        raise ConfigError("`inspect` of the module shows nothing; let the plugin's `inspects` say so")
    return {name: _shown_shape(name, tensor) for name, tensor in shown.items()}


def _shown_shape(name: str, tensor: Tensor) -> tuple[str | int, ...]:
    is_real, sizes = tensor.dtype == torch.float32, list(tensor.shape)
    if is_real and tensor.ndim == 3 and sizes[:2] == [_TRACE_ROWS, _TRACE_TIME]:
        return "row", "time", sizes[2]
    if is_real and tensor.ndim == 4 and [sizes[0], *sizes[2:]] == [_TRACE_ROWS, _TRACE_TIME, _TRACE_TIME]:
        return "row", sizes[1], "time", "time"
    raise ConfigError(
        f"`inspect` of the module shows {name!r} as {tensor.dtype} {sizes}, for {_TRACE_ROWS} rows of {_TRACE_TIME} "
        "items; expected is float32 [row, head, query, key] or [row, time, unit]"
    )


def _trace_whole(module: torch.nn.Module, spec: ModelSpec, io: GraphIO) -> TracedStep:
    row, time = torch.export.Dim("row"), torch.export.Dim("time")
    with attention_lowering("plain"):
        return _trace(module, _example_rows(spec), ({0: row, 1: time}, {0: row}), io)


def _trace(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    sizes: tuple[Any, ...],
    io: GraphIO,
    *,
    has_output: bool = True,
) -> TracedStep:
    """Trace a module whose arguments and results are the model's inputs and outputs; `has_output`: not state alone."""
    results = [tensor.name for tensor in io.model_outputs]
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in io.model_inputs],
            output_names=results,
            dynamic_shapes=sizes,
            verbose=False,
        )
        assert program is not None
        # The reordering of gates is folded into the weights, whatever their size.
        onnxscript.optimizer.optimize(program.model, input_size_limit=2**62, output_size_limit=2**62)
    output, new_state = (results[0], results[1:]) if has_output else ("", results)
    return _take_apart(program.model, output, tuple(new_state))


def _state_sizes(spec: ModelSpec, sizes: dict[str, Any]) -> tuple[dict[int, Any], ...]:
    """The dynamic dimensions of every state tensor."""
    return tuple(
        {d: sizes[size] for d, size in enumerate(part.shape) if isinstance(size, str) and size in sizes}
        for part in spec.state
    )


def _example_rows(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    return _example_items(spec.input, _TRACE_ROWS, _TRACE_TIME), torch.arange(_TRACE_ROWS) + 1


def _example_items(reads: InputSpec, num_rows: int, time: int) -> Tensor:
    if isinstance(reads, TokenInput):
        return torch.zeros(num_rows, time, dtype=torch.int64)
    return torch.zeros(num_rows, time, reads.features)


def _take_apart(model: ir.Model, output: str, new_state: tuple[str, ...]) -> TracedStep:
    # torch notes the source lines of each node: paths of the machine that exports, which are nobody's business.
    for node in chain(model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        node.metadata_props.clear()
    weights: dict[str, NDArray[Any]] = {}
    for name, value in list(model.graph.initializers.items()):
        assert value.const_value is not None
        weights[name] = np.asarray(value.const_value.numpy(), order="C")  # ascontiguousarray makes scalars vectors
        del model.graph.initializers[name]
    proto = ir.to_proto(model)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    reals = frozenset(value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    results = {value.name for value in proto.graph.output}
    nodes = _without_detours(proto.graph.node, {value.name: _shape(value) for value in values}, results)
    return TracedStep(nodes, weights, output, new_state, reals - weights.keys())


def _without_detours(
    nodes: Iterable[onnx.NodeProto], shapes: dict[str, Any], results: set[str]
) -> list[onnx.NodeProto]:
    """The nodes without a Reshape that undoes the one before it, as where heads are told apart and put together."""
    reshaped: dict[str, str] = {}
    same: dict[str, str] = {}
    kept = []
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Reshape":
            source = None if node.output[0] in results else reshaped.get(node.input[0])
            if source is not None and shapes.get(source) is not None and shapes[source] == shapes.get(node.output[0]):
                same[node.output[0]] = source
                continue
            reshaped[node.output[0]] = node.input[0]
        kept.append(node)
    read = results.union(*(node.input for node in kept))
    # The first one of each pair is kept where others read it.
    return [node for node in kept if node.op_type != "Reshape" or node.output[0] in read]


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...] | None:
    """Names and sizes of a value's dimensions; None where one is unknown."""
    dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return tuple(dims) if all(dims) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on optional packages and on its own internals from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*axis name.*", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
