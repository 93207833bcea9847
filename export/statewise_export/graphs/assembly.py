"""The graphs of a bundle, with the inputs and outputs that statewise.model.graph_io declares.

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

from statewise.model import graph_io
from statewise.model.graph_io import ITEMS, LENGTHS, STEP_OUTPUT, STEPS, GraphIO, GraphTensor
from statewise.model.sampling_inputs import NOISE
from statewise.model.spec import ModelSpec
from statewise_export.builder import GraphBuilder, renamed_nodes, tensor_info, untyped
from statewise_export.choosing.choice import Choice, choice_of
from statewise_export.graphs.score import add_log_probabilities
from statewise_export.trace.trace import OPSET, TracedStep

IR_VERSION = 10

_NEWER_OPERATORS = {"Attention": 24, "TensorScatter": 24}
"""Operators that a step may hold although OPSET has none of the name, with the opset that they need."""

_BODY = "body."
"""Prefix of the values that the Loop of a decode graph carries."""


def step_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """The step with the choice of the next items."""
    return _choosing_graph("step", traced, spec, graph_io.step_io(spec))


def model_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """The step without the choice."""
    return _graph("step", traced.nodes, graph_io.model_io(spec))


def choose_graph(spec: ModelSpec) -> onnx.GraphProto:
    """The choice alone, from the output of a step without it."""
    op, io = GraphBuilder(), graph_io.choose_io(spec)
    chosen = _add_choice(op, choice_of(spec.head), STEP_OUTPUT, io)
    output = {op.Identity(STEP_OUTPUT): io.model_outputs[0].name}
    return _graph("choose", op.nodes, io, chosen | output)


def mixed_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """One item of each of some rows beside a chunk of one more, with the choice of all their next items."""
    return _choosing_graph("mixed", traced, spec, graph_io.mixed_io(spec))


def encode_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """A source to the state that a row begins from."""
    return _graph("encode", traced.nodes, graph_io.encode_io(spec))


def decode_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """K steps, each fed with the item before."""
    op, io = GraphBuilder("d"), graph_io.decode_io(spec)
    body = _loop_body(op, traced, spec, io)
    carried = [ITEMS, *(graph_io.state_input(s.name) for s in spec.written_state)]
    outputs = op.node("Loop", [STEPS, "", *carried], len(carried) + len(io.results), body=body)
    # The carried items are of no more use; the state and then the gathered results follow.
    names = [tensor.name for tensor in (*io.model_outputs, *io.results)]
    return _graph("decode", op.nodes, io, dict(zip(outputs[1:], names, strict=True)))


def _loop_body(outer: GraphBuilder, traced: TracedStep, spec: ModelSpec, io: GraphIO) -> onnx.GraphProto:
    op, choice = outer.subgraph(), choice_of(spec.head)
    # Memories are read where they lie, outside the loop.
    inputs = {graph_io.state_input(s.name) for s in spec.written_state} | {ITEMS}
    outputs = [tensor.name for tensor in io.model_outputs]
    inside = {name: _BODY + name for name in (*inputs, *outputs)}
    lengths = op.ConstantOfShape(
        op.Slice(op.Shape(inside[ITEMS]), op.constant([0]), op.constant([1])),
        value=onnx.numpy_helper.from_array(np.ones(1, np.int64)),
    )
    nodes = [*op.nodes, *renamed_nodes(traced.nodes, inside | {LENGTHS: lengths})]
    op.nodes = []
    noise = op.Gather(NOISE, f"{_BODY}index", axis=1) if io.choice_inputs else ""
    results = choice.add(op, traced.output, noise)
    items = op.Unsqueeze(choice.fed_back(op, results[0]), op.constant([1]))
    go_on = op.Identity(f"{_BODY}condition")
    gathered = [op.Identity(value) for value in results]
    infos = [tensor_info(f"{_BODY}index", "int64", []), tensor_info(f"{_BODY}condition", "bool", [])]
    infos += [_info(t._replace(name=inside[t.name])) for t in io.model_inputs if t.name in inputs]
    made = [go_on, items, *(inside[name] for name in outputs), *gathered]
    return helper.make_graph([*nodes, *op.nodes], "body", infos, [untyped(name) for name in made])


def predict_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """The model's answer about whole sequences."""
    return _graph("predict", traced.nodes, graph_io.predict_io(spec))


def score_graph(traced: TracedStep, spec: ModelSpec) -> onnx.GraphProto:
    """Log-probabilities of the items of whole sequences."""
    op, io = GraphBuilder("score"), graph_io.score_io(spec)
    ends = op.constant([np.iinfo(np.int64).max])
    items = op.Slice(ITEMS, op.constant([1]), ends, op.constant([1]))
    result = add_log_probabilities(op, traced.output, items, spec.head)
    return _graph("score", [*traced.nodes, *op.nodes], io, {result: io.model_outputs[0].name})


def inspection_graph(traced: TracedStep, spec: ModelSpec, shapes: Mapping[str, Sequence[str | int]]) -> onnx.GraphProto:
    """Tensors of these shapes, by name, that show the inside of the model on whole sequences."""
    return _graph("inspect", traced.nodes, graph_io.inspect_io(spec, shapes))


def _choosing_graph(name: str, traced: TracedStep, spec: ModelSpec, io: GraphIO) -> onnx.GraphProto:
    op = GraphBuilder()
    chosen = _add_choice(op, choice_of(spec.head), traced.output, io)
    return _graph(name, [*traced.nodes, *op.nodes], io, chosen)


def _add_choice(op: GraphBuilder, choice: Choice, output: str, io: GraphIO) -> dict[str, str]:
    """Add the choice of one item per row; returns the names that its values are to have as outputs."""
    noise = op.Squeeze(NOISE, op.constant([1])) if io.choice_inputs else ""
    results = [op.Identity(value) for value in choice.add(op, output, noise)]
    return dict(zip(results, (tensor.name for tensor in io.results), strict=True))


def _graph(
    name: str, nodes: Iterable[onnx.NodeProto], io: GraphIO, names: Mapping[str, str] | None = None
) -> onnx.GraphProto:
    """A graph with these inputs and outputs; `names`: of values that the nodes call otherwise."""
    return helper.make_graph(renamed_nodes(nodes, names or {}), name, _infos(io.inputs), _infos(io.outputs))


def _infos(tensors: Iterable[GraphTensor]) -> list[onnx.ValueInfoProto]:
    return [_info(tensor) for tensor in tensors]


def _info(tensor: GraphTensor) -> onnx.ValueInfoProto:
    return tensor_info(tensor.name, tensor.dtype, tensor.shape)


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
