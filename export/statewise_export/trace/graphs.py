"""The graphs of a bundle.

`step`: any number of new items per row; `choose`: the choice of the next items, where the step does without it;
`decode`: K single-item steps in a Loop; `mixed`: one item of each of the first rows and a chunk of the row behind them;
`encode`: a source to the state that a row begins from; `predict`, `score` and `inspect`: whole sequences. Memories go
into a step and do not come out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from statewise.model.spec import InputSpec, LabelsHead, ModelSpec, StateSpec, TokenInput
from statewise_export.choosing.choice import Choice, choice_of
from statewise_export.trace.builder import GraphBuilder, renamed_nodes, tensor_info, untyped
from statewise_export.trace.score import add_log_probabilities
from statewise_export.trace.trace import OPSET, TracedStep

IR_VERSION = 10

_NEWER_OPERATORS = {"Attention": 24, "TensorScatter": 24}
"""Operators that a step may hold although OPSET has none of the name, with the opset that they need."""


def step_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """Inputs `items`, `lengths`, `state.*` and the sampler's; outputs `next_items` `[row]`, `output`, `new_state.*`."""
    op, choice = GraphBuilder(), choice_of(spec)
    results = _add_choice(op, choice, traced.output)
    model = model_graph(traced, spec)
    inputs = [*model.input, *choice.inputs("row")]
    outputs = [*choice.infos(results, ["row"]), *model.output]
    graph = helper.make_graph([*model.node, *op.nodes], "step", inputs, outputs)
    return _rename(graph, dict(zip(results, choice.results, strict=True)))


def model_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """The step without the choice: inputs `items`, `lengths` and `state.*`; outputs `output` and `new_state.*`."""
    inputs = [_items_info(spec.input, "time"), tensor_info("lengths", "int64", ["row"]), *_state_infos(spec)]
    outputs = [
        tensor_info(traced.output, "float32", ["row", spec.head.output_size]),
        *(tensor_info(f"new_state.{s.name}", s.dtype, list(s.shape)) for s in spec.written_state),
    ]
    return helper.make_graph(traced.nodes, "step", inputs, outputs)


def choose_graph(spec: ModelSpec) -> onnx.GraphProto:
    """The choice alone: inputs `step.output` `[row, size]` and the sampler's; outputs as of a step without state."""
    op, choice = GraphBuilder(), choice_of(spec)
    results = _add_choice(op, choice, "step.output")
    output = op.Identity("step.output")
    shape = ("row", spec.head.output_size)
    inputs = [tensor_info("step.output", "float32", shape), *choice.inputs("row")]
    outputs = [*choice.infos(results, ["row"]), tensor_info(output, "float32", shape)]
    graph = helper.make_graph(op.nodes, "choose", inputs, outputs)
    return _rename(graph, dict(zip(results, choice.results, strict=True)) | {output: "output"})


def mixed_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """`items` `[row, 1]`, one of each of some rows, and `chunk.items` `[1, time]` of one more: `[row + 1]` results."""
    op, choice = GraphBuilder(), choice_of(spec)
    results = _add_choice(op, choice, traced.output)
    chunk_items = _renamed(_items_info(spec.input, "time"), "chunk.items")
    chunk_items.type.tensor_type.shape.dim[0].dim_value = 1
    inputs = [
        _items_info(spec.input, 1),
        *_state_infos(spec),
        chunk_items,
        *_chunk_state_infos(spec.sized_state, "chunk.state"),
    ]
    inputs += choice.inputs("every")
    outputs = [
        *choice.infos(results, ["every"]),
        tensor_info(traced.output, "float32", ["every", spec.head.output_size]),
        *(tensor_info(f"new_state.{s.name}", s.dtype, list(s.shape)) for s in spec.written_state),
        *_chunk_state_infos(spec.written_state, "chunk.new_state"),
    ]
    graph = helper.make_graph([*traced.nodes, *op.nodes], "mixed", inputs, outputs)
    return _rename(graph, dict(zip(results, choice.results, strict=True)))


def encode_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """Inputs `source` `[row, time]` or `[row, time, features]` and `source_lengths`; outputs all state but caches."""
    assert spec.source is not None
    lengths = tensor_info("source_lengths", "int64", ["row"])
    inputs = [_renamed(_items_info(spec.source, "time"), "source"), lengths]
    made = [s for s in spec.sized_state if s.kind != "cache"]
    outputs = [tensor_info(f"new_state.{s.name}", s.dtype, list(s.shape)) for s in made]
    return helper.make_graph(list(traced.nodes), "encode", inputs, outputs)


def _add_choice(op: GraphBuilder, choice: Choice, output: str) -> list[str]:
    """What a run of one step gives each row, chosen by the head's output."""
    noise = op.Squeeze(choice.noise, op.constant([1])) if choice.noise else ""
    return [op.Identity(value) for value in choice.add(op, output, noise)]


def decode_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """K = `steps` runs of the step, each fed with the item before; results are `[K, row]`, the state the last one's."""
    op, choice = GraphBuilder("d"), choice_of(spec)
    body = _loop_body(op, choice, traced, spec)
    carried = ["items", *(f"state.{s.name}" for s in spec.written_state)]
    outputs = op.node("Loop", ["steps", "", *carried], len(carried) + len(choice.results), body=body)
    new_state = {outputs[1 + index]: f"new_state.{s.name}" for index, s in enumerate(spec.written_state)}
    gathered = dict(zip(outputs[len(carried) :], choice.results, strict=True))
    inputs = [_items_info(spec.input, 1), tensor_info("steps", "int64", []), *_state_infos(spec), *choice.inputs("row")]
    output_infos = [
        *choice.infos(list(gathered), ["step", "row"]),
        *(tensor_info(name, s.dtype, list(s.shape)) for name, s in zip(new_state, spec.written_state, strict=True)),
    ]
    graph = helper.make_graph(op.nodes, "decode", inputs, output_infos)
    return _rename(graph, gathered | new_state)


def _loop_body(outer: GraphBuilder, choice: Choice, traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    op = outer.subgraph()
    # Memories are read where they lie, outside the loop.
    state_names = [s.name for s in spec.written_state]
    inside = {"items": "body.items"} | {f"state.{name}": f"body.state.{name}" for name in state_names}
    inside |= {f"new_state.{name}": f"body.new_state.{name}" for name in state_names}
    lengths = op.ConstantOfShape(
        op.Slice(op.Shape("body.items"), op.constant([0]), op.constant([1])),
        value=onnx.numpy_helper.from_array(np.ones(1, np.int64)),
    )
    nodes = [*op.nodes, *renamed_nodes(traced.nodes, inside | {"lengths": lengths})]
    op.nodes = []
    noise = op.Gather(choice.noise, "body.index", axis=1) if choice.noise else ""
    results = choice.add(op, traced.output, noise)
    items = op.Unsqueeze(choice.fed_back(op, results[0]), op.constant([1]))
    go_on = op.Identity("body.condition")
    gathered = [op.Identity(value) for value in results]
    inputs = [
        tensor_info("body.index", "int64", []),
        helper.make_tensor_value_info("body.condition", TensorProto.BOOL, []),
    ]
    inputs += [_renamed(_items_info(spec.input, 1), "body.items")]
    inputs += [tensor_info(f"body.state.{s.name}", s.dtype, list(s.shape)) for s in spec.written_state]
    outputs = [go_on, items, *(f"body.new_state.{name}" for name in state_names), *gathered]
    return helper.make_graph([*nodes, *op.nodes], "body", inputs, [untyped(name) for name in outputs])


def predict_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """Inputs `items` `[row, time]` and `lengths` `[row]`; output `output`, what the model says of each sequence.

    That is `[row, size]`, or `[row, time, labels]` where every item has a label.
    """
    says = spec.prediction
    assert says is not None
    is_per_item = isinstance(says, LabelsHead) and says.per == "item"
    shape = ("row", "time", says.output_size) if is_per_item else ("row", says.output_size)
    outputs = [tensor_info(traced.output, "float32", shape)]
    return helper.make_graph(traced.nodes, "predict", _whole_infos(spec), outputs)


def score_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """Inputs as for `predict`; output `log_probabilities` `[row, time - 1]`: of each item given those before it."""
    op = GraphBuilder("score")
    ends = op.constant([np.iinfo(np.int64).max])
    items = op.Slice("items", op.constant([1]), ends, op.constant([1]))
    result = add_log_probabilities(op, traced.output, items, spec.head)
    outputs = [tensor_info(result, "float32", ["row", "previous"])]
    graph = helper.make_graph([*traced.nodes, *op.nodes], "score", _whole_infos(spec), outputs)
    return _rename(graph, {result: "log_probabilities"})


def inspection_graph(traced: TracedStep, spec: ModelSpec, shapes: Mapping[str, Sequence[str | int]]) -> onnx.GraphProto:
    """Inputs as for `predict`; what the model shows of each sequence, in these shapes by name."""
    outputs = [tensor_info(name, "float32", list(shape)) for name, shape in shapes.items()]
    return helper.make_graph(traced.nodes, "inspect", _whole_infos(spec), outputs)


def finish_model(graph: onnx.GraphProto, weights: Sequence[TensorProto]) -> onnx.ModelProto:
    """The graph with the weights it reads, checked."""
    _add_weights(graph, weights)
    opset = max([OPSET, *(_NEWER_OPERATORS.get(node.op_type, OPSET) for node in graph.node)])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="statewise")
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False)


def _add_weights(graph: onnx.GraphProto, weights: Sequence[TensorProto], outer: frozenset[str] = frozenset()) -> None:
    """Put each weight into the graphs whose nodes read it, however deep, unless a graph around has it.

    ONNX Runtime packs the weights of MatMulNBits only where they lie near; without, it takes five times as long, and
    computes in float32 instead.
    """
    read = {name for node in graph.node for name in node.input} - outer
    own = [weight for weight in weights if weight.name in read]
    graph.initializer.extend(own)
    seen = outer | {weight.name for weight in own}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _add_weights(attribute.g, weights, seen)


def _items_info(reads: InputSpec, time: str | int) -> onnx.ValueInfoProto:
    if isinstance(reads, TokenInput):
        return tensor_info("items", "int64", ["row", time])
    return tensor_info("items", "float32", ["row", time, reads.features])


def _whole_infos(spec: ModelSpec) -> list[onnx.ValueInfoProto]:
    return [_items_info(spec.input, "time"), tensor_info("lengths", "int64", ["row"])]


def _state_infos(spec: ModelSpec) -> list[onnx.ValueInfoProto]:
    return [tensor_info(f"state.{s.name}", s.dtype, list(s.shape)) for s in spec.sized_state]


def _chunk_state_infos(state: Iterable[StateSpec], prefix: str) -> list[onnx.ValueInfoProto]:
    return [tensor_info(f"{prefix}.{s.name}", s.dtype, [1, *s.shape[1:]]) for s in state]


def _renamed(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    info.name = name
    return info


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> onnx.GraphProto:
    nodes = renamed_nodes(graph.node, names)
    del graph.node[:]
    graph.node.extend(nodes)
    for info in graph.output:
        info.name = names.get(info.name, info.name)
    return graph
