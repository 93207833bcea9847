"""The graphs of one variant: traced from the checkpoint's module, lowered by the variant's passes, written to files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from torch import nn

from statewise.bundles.manifest import Variant
from statewise.model.spec import ModelSpec
from statewise_export.faults import graph_faults
from statewise_export.graphs.assembly import (
    choose_graph,
    decode_graph,
    encode_graph,
    finish_model,
    inspection_graph,
    mixed_graph,
    model_graph,
    predict_graph,
    score_graph,
    step_graph,
)
from statewise_export.graphs.score import can_score
from statewise_export.graphs.weights import share_weights, write_weights
from statewise_export.passes.variants import VariantPlan
from statewise_export.trace.trace import (
    TracedStep,
    shown_shapes,
    trace_encode,
    trace_inspection,
    trace_mixed,
    trace_next_outputs,
    trace_prediction,
    trace_step,
)
from statewise_training.checkpoints.checkpoint import Checkpoint
from statewise_training.families.shared.lowering import attention_lowering

Weights = dict[str, NDArray[Any]]
Trace = Callable[[nn.Module, ModelSpec], TracedStep]


class Tracer:
    """Traces a checkpoint's module, each part once for all variants that lower attention alike."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.plugin.spec(checkpoint.config)
        self._module = checkpoint.in_raw_units()
        self._traced: dict[tuple[str, str], TracedStep] = {}

    def trace(self, part: str, trace: Trace, attention: str) -> TracedStep:
        """Return the nodes and weights of one part of the module. Passes make new ones, and leave these as they are."""
        if (part, attention) not in self._traced:
            with graph_faults(f"tracing the module ({part})"):
                self._traced[part, attention] = trace(self._module, self.spec)
        return self._traced[part, attention]

    def shown_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """Shapes of what the module shows of whole sequences, by name."""
        return shown_shapes(self._module, self.spec)


def write_variant(name: str, plan: VariantPlan, tracer: Tracer, folder: Path, *, inspect: bool = False) -> Variant:
    """Write the graphs of a variant and the weights that they share.

    Raises ConfigError where a pass cannot lower the model, ParityError where the graphs are not valid ONNX.
    """
    spec = tracer.spec
    graphs, weights = lowered_graphs(plan, tracer, inspect=inspect and plan.shows)
    files = {graph: f"{graph}.{name}.onnx" for graph in graphs}
    data = f"weights.{name}.data"
    initializers = write_weights(folder / data, weights)
    for graph, file in files.items():
        with graph_faults(f"{name}: graph {graph!r}"):
            onnx.save_model(finish_model(graphs[graph], initializers), folder / file)
            onnx.checker.check_model(str(folder / file))
    return Variant(
        device=plan.device,
        precision=plan.precision,
        data=(data,),
        state_dtype=plan.state_dtype,
        # GroupQueryAttention takes several new items of one row only.
        ragged_prefill=not spec.has_caches or plan.attention == "standard",
        max_threads=_most_threads(graphs.values()) if plan.device == "cpu" else None,
        certificate=f"certificate.{name}.json",
        **files,
    )


def _most_threads(graphs: Iterable[onnx.GraphProto]) -> int | None:
    """The fewest heads of any attention, if there is some.

    ONNX Runtime's GroupQueryAttention cuts a long cache in parts where it has more threads than heads over all rows,
    and adds the parts up: one row would be computed otherwise than several.
    """
    attentions = [node for graph in graphs for node in graph.node if node.op_type == "GroupQueryAttention"]
    return min((a.i for node in attentions for a in node.attribute if a.name == "num_heads"), default=None)


def lowered_graphs(
    plan: VariantPlan, tracer: Tracer, *, inspect: bool = False
) -> tuple[dict[str, onnx.GraphProto], Weights]:
    """Return the graphs of a variant by name, and all their weights; the trace is in the spec's own types."""
    with attention_lowering(plan.attention):
        return _lowered_graphs(plan, tracer, inspect=inspect)


def _lowered_graphs(plan: VariantPlan, tracer: Tracer, *, inspect: bool) -> tuple[dict[str, onnx.GraphProto], Weights]:
    spec, lowered = tracer.spec, tracer.spec.with_state_dtype(plan.state_dtype)
    graphs: dict[str, onnx.GraphProto] = {}
    weights: Weights = {}

    def trace(trace: Trace, part: str) -> TracedStep:
        """Trace and lower the module; weights that an earlier trace has too are the same ones."""
        traced = plan.lower(tracer.trace(part, trace, plan.attention))
        shared = share_weights(traced, weights, part) if weights else traced
        weights.update(shared.weights)
        return shared

    if spec.generates:
        graphs |= _step_graphs(plan, trace(trace_step, "step"), lowered)
    if tracer.checkpoint.plugin.mixes and plan.attention == "gqa":
        graphs["mixed"] = mixed_graph(trace(trace_mixed, "mixed"), lowered)
    if spec.prediction is not None:
        graphs["predict"] = predict_graph(trace(trace_prediction, "predict"), lowered)
    if can_score(spec):
        graphs["score"] = score_graph(trace(trace_next_outputs, "score"), lowered)
    if spec.source is not None:
        graphs["encode"] = encode_graph(trace(trace_encode, "encode"), lowered)
    if inspect:
        graphs["inspect"] = inspection_graph(trace(trace_inspection, "inspect"), lowered, tracer.shown_shapes())
    return graphs, weights


def _step_graphs(plan: VariantPlan, step: TracedStep, spec: ModelSpec) -> dict[str, onnx.GraphProto]:
    """Return the graphs that make new items, by name."""
    if not spec.has_caches:
        return {"step": step_graph(step, spec), "decode": decode_graph(step, spec)}
    # A Loop would copy caches at every step; they are appended to in place, one step to a run.
    if plan.device == "cpu":
        return {"step": step_graph(step, spec)}
    # The sampler leaves out what no row needs, by control flow, which a CUDA graph cannot hold.
    return {"step": model_graph(step, spec), "choose": choose_graph(spec)}
