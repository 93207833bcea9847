"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from torch import nn

from statewise.bundles.certificate import Certificate, Limits, check_certificate
from statewise.bundles.manifest import Variant
from statewise.bundles.reader import Bundle, open_bundle, resolve_bundle
from statewise.bundles.writer import BundleContent, new_bundle
from statewise.errors import BundleError, ConfigError
from statewise.model.spec import ModelSpec
from statewise_export.certify.certify import certify
from statewise_export.certify.inputs import Scale
from statewise_export.certify.subject import library_versions
from statewise_export.certify.tolerances import limits
from statewise_export.passes.variants import DEFAULT_VARIANT, VariantPlan, plans
from statewise_export.trace.graphs import (
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
from statewise_export.trace.score import can_score
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
from statewise_export.trace.weights import share_weights, write_weights
from statewise_server.runtime.ort.providers import why_not
from statewise_training.checkpoints.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, Checkpoint, load_checkpoint
from statewise_training.families.shared.lowering import attention_lowering
from statewise_training.reference.decoding import ReferenceDecoder

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """The outcome of an export."""

    certificates: tuple[Certificate, ...]
    """One for each variant."""
    folder: Path | None
    """The bundle; None where parity was missed, since then none is made."""


def export_checkpoint(
    checkpoint: Checkpoint,
    repository: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    variants: Iterable[str] = (DEFAULT_VARIANT,),
    inspect: bool = False,
    max_kl: float | None = None,
    progress: Progress = lambda _: None,
) -> Exported:
    """Export a checkpoint into a model repository, as the next version of the model unless one is named.

    `max_kl` is the largest KL divergence from float32, in nats, of variants of lower precision; their precision's
    limit where absent. `inspect` adds graphs of what the model shows to the variants in float32.
    Raises ConfigError where a variant, the name or the version cannot be used, or the disk fails.
    """
    chosen = plans(variants)
    if inspect:
        _check_inspection(checkpoint, chosen)
    with new_bundle(repository, checkpoint.name if name is None else name, version) as draft:
        progress("tracing the model")
        written = {n: write_variant(n, plan, checkpoint, draft.folder, inspect=inspect) for n, plan in chosen.items()}
        _copy_checkpoint(checkpoint, draft.folder)
        content = BundleContent(
            plugin=checkpoint.plugin.name,
            plugin_config=checkpoint.config.model_dump(mode="json"),
            model=checkpoint.plugin.spec(checkpoint.config),
            variants=written,
            created_with=library_versions(),
            special_tokens=checkpoint.special_tokens,
            tokenizer=TOKENIZER_FILE if checkpoint.tokenizer_file else None,
        )
        certify = _certifier(draft.preview(content), checkpoint, progress)
        certificates = {variant: certify(variant, limits(plan.precision, max_kl)) for variant, plan in chosen.items()}
        if not all(certificate.passed for certificate in certificates.values()):
            return Exported(tuple(certificates.values()), None)
        for variant, certificate in certificates.items():
            (draft.folder / written[variant].certificate).write_text(certificate.to_json(), encoding="utf-8")
        return Exported(tuple(certificates.values()), draft.commit(content))


@dataclass(frozen=True)
class Verified:
    """A bundle's certificate, and the same made again."""

    stored: Certificate
    remade: Certificate


def verify_bundle(path: Path, *, progress: Progress = lambda _: None) -> dict[str, Verified]:
    """Make every certificate of a bundle again, from the checkpoint inside it; of those whose device is here.

    Raises BundleError where the bundle is damaged, not certified or for other devices, NotFoundError where there is
    none.
    """
    bundle = open_bundle(resolve_bundle(path))
    stored = {name: check_certificate(bundle, name) for name in bundle.manifest.variants}
    elsewhere = {name: reason for name in stored if (reason := why_not(bundle.variant(name).device))}
    for name, reason in elsewhere.items():
        progress(f"leaving out {name}: {reason}")
        del stored[name]
    if not stored:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in elsewhere.items())
        raise BundleError(f"{bundle}: no variant of it runs here: {reasons}")
    if CHECKPOINT_FILE not in bundle.manifest.files:
        raise BundleError(f"{bundle}: holds no {CHECKPOINT_FILE}, so there is nothing to verify it against")
    checkpoint = load_checkpoint(bundle.folder)
    certify = _certifier(bundle, checkpoint, progress)
    return {name: Verified(before, certify(name, before.limits)) for name, before in stored.items()}


def _certifier(
    bundle: Bundle, checkpoint: Checkpoint, progress: Progress
) -> Callable[[str, Limits | None], Certificate]:
    """Certify one variant after another against the same checkpoint."""
    reference, scale = reference_of(checkpoint), scale_of(checkpoint)
    held_out = checkpoint.held_out() if reference.spec.source is None else checkpoint.held_out_pairs()

    def certify_variant(name: str, limits: Limits | None) -> Certificate:
        def tell(stage: str) -> None:
            progress(f"{name}: {stage}")

        return certify(bundle, name, reference, scale, tell, held_out=held_out, limits=limits)

    return certify_variant


def reference_of(checkpoint: Checkpoint) -> ReferenceDecoder:
    """What a bundle of the checkpoint is held against."""
    return ReferenceDecoder(checkpoint.in_raw_units(), checkpoint.plugin.spec(checkpoint.config))


def scale_of(checkpoint: Checkpoint) -> Scale:
    """The scale of the vectors that the checkpoint's model reads."""
    standardization = checkpoint.standardization
    return Scale(standardization.mean, standardization.deviation) if standardization else Scale()


def _check_inspection(checkpoint: Checkpoint, chosen: Mapping[str, VariantPlan]) -> None:
    plugin = checkpoint.plugin
    if not plugin.inspects(checkpoint.config):
        raise ConfigError(f"--inspect: a model of plugin {plugin.name!r} has neither attention nor gates to show")
    if not any(plan.shows for plan in chosen.values()):
        raise ConfigError(f"--inspect: only variants in float32 show what goes on; add one to {', '.join(chosen)}")


def write_variant(
    name: str, plan: VariantPlan, checkpoint: Checkpoint, folder: Path, *, inspect: bool = False
) -> Variant:
    """Write the graphs of a variant and the weights that they share."""
    spec = checkpoint.plugin.spec(checkpoint.config)
    with attention_lowering(plan.attention):
        graphs, weights = _graphs(plan, checkpoint, spec, inspect=inspect and plan.shows)
    files = {graph: f"{graph}.{name}.onnx" for graph in graphs}
    data = f"weights.{name}.data"
    initializers = write_weights(folder / data, weights)
    for graph, file in files.items():
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


def _graphs(
    plan: VariantPlan, checkpoint: Checkpoint, spec: ModelSpec, *, inspect: bool
) -> tuple[dict[str, onnx.GraphProto], dict[str, NDArray[Any]]]:
    """The graphs of a variant by name, and all their weights; the trace is in the spec's own types."""
    module, lowered = checkpoint.in_raw_units(), spec.with_state_dtype(plan.state_dtype)
    graphs: dict[str, onnx.GraphProto] = {}
    weights: dict[str, NDArray[Any]] = {}

    def trace(tracer: Callable[[nn.Module, ModelSpec], TracedStep], prefix: str) -> TracedStep:
        """Trace and lower the module; weights that an earlier trace has too are the same ones."""
        traced = plan.lower(tracer(module, spec))
        shared = share_weights(traced, weights, prefix) if weights else traced
        weights.update(shared.weights)
        return shared

    if spec.generates:
        graphs |= _step_graphs(plan, trace(trace_step, "step"), lowered)
    if checkpoint.plugin.mixes and plan.attention == "gqa":
        graphs["mixed"] = mixed_graph(trace(trace_mixed, "mixed"), lowered)
    if spec.prediction is not None:
        graphs["predict"] = predict_graph(trace(trace_prediction, "predict"), lowered)
    if can_score(spec):
        graphs["score"] = score_graph(trace(trace_next_outputs, "score"), lowered)
    if spec.source is not None:
        graphs["encode"] = encode_graph(trace(trace_encode, "encode"), lowered)
    if inspect:
        graphs["inspect"] = inspection_graph(trace(trace_inspection, "inspect"), lowered, shown_shapes(module, spec))
    return graphs, weights


def _step_graphs(plan: VariantPlan, step: TracedStep, spec: ModelSpec) -> dict[str, onnx.GraphProto]:
    """What makes new items, by name."""
    if not spec.has_caches:
        return {"step": step_graph(step, spec), "decode": decode_graph(step, spec)}
    # A Loop would copy caches at every step; they are appended to in place, one step to a run.
    if plan.device == "cpu":
        return {"step": step_graph(step, spec)}
    # The sampler leaves out what no row needs, by control flow, which a CUDA graph cannot hold.
    return {"step": model_graph(step, spec), "choose": choose_graph(spec)}


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint goes along, so that `verify` needs the bundle alone."""
    for name in (*checkpoint.files, CHECKPOINT_FILE):
        shutil.copyfile(checkpoint.folder / name, folder / name)
