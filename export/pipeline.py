"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.certify import certify, library_versions
from export.graphs import decode_graph, finish_model, mixed_graph, step_graph
from export.inputs import Scale
from export.tolerances import limits
from export.trace import trace_mixed, trace_step
from export.variants import DEFAULT_VARIANT, VariantPlan, plans
from export.weights import share_weights, write_weights
from statewise.bundle import Bundle, open_bundle, resolve_bundle
from statewise.bundle_writer import BundleContent, new_bundle
from statewise.certificate import Certificate, Limits, check_certificate
from statewise.errors import BundleError
from statewise.manifest import ModelSpec, Variant
from training.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, Checkpoint, load_checkpoint
from training.decoding import ReferenceDecoder

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
    max_kl: float | None = None,
    progress: Progress = lambda _: None,
) -> Exported:
    """Export a checkpoint into a model repository, as the next version of the model unless one is named.

    `max_kl` is the largest KL divergence from float32, in nats, of variants of lower precision; their precision's
    limit where absent.
    Raises ConfigError where a variant, the name or the version cannot be used, or the disk fails.
    """
    chosen = plans(variants)
    spec = checkpoint.plugin.spec(checkpoint.config)
    with new_bundle(repository, checkpoint.name if name is None else name, version) as draft:
        progress("tracing the model")
        written = {n: _write_graphs(n, plan, checkpoint, spec, draft.folder) for n, plan in chosen.items()}
        _copy_checkpoint(checkpoint, draft.folder)
        content = BundleContent(
            plugin=checkpoint.plugin.name,
            plugin_config=checkpoint.config.model_dump(mode="json"),
            model=spec,
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
    """Make every certificate of a bundle again, from the checkpoint inside it.

    Raises BundleError where the bundle is damaged or not certified, NotFoundError where there is none.
    """
    bundle = open_bundle(resolve_bundle(path))
    stored = {name: check_certificate(bundle, name) for name in bundle.manifest.variants}
    if CHECKPOINT_FILE not in bundle.manifest.files:
        raise BundleError(f"{bundle}: holds no {CHECKPOINT_FILE}, so there is nothing to verify it against")
    checkpoint = load_checkpoint(bundle.folder)
    certify = _certifier(bundle, checkpoint, progress)
    return {name: Verified(before, certify(name, before.limits)) for name, before in stored.items()}


def _certifier(
    bundle: Bundle, checkpoint: Checkpoint, progress: Progress
) -> Callable[[str, Limits | None], Certificate]:
    """Certify one variant after another against the same checkpoint."""
    reference = ReferenceDecoder(checkpoint.in_raw_units(), bundle.manifest.model)
    standardization, held_out = checkpoint.standardization, checkpoint.held_out()
    scale = Scale(standardization.mean, standardization.deviation) if standardization else Scale()

    def certify_variant(name: str, limits: Limits | None) -> Certificate:
        def tell(stage: str) -> None:
            progress(f"{name}: {stage}")

        return certify(bundle, name, reference, scale, tell, held_out=held_out, limits=limits)

    return certify_variant


def _write_graphs(name: str, plan: VariantPlan, checkpoint: Checkpoint, spec: ModelSpec, folder: Path) -> Variant:
    """Write the graphs of a variant and the weights that they share."""
    module = checkpoint.in_raw_units()
    step = plan.lower(trace_step(module, spec))
    graphs, weights = {"step": step_graph(step, spec)}, step.weights
    if not any(s.kind == "cache" for s in spec.state):
        # A Loop would copy caches at every step; they are appended to in place, one step to a run.
        graphs["decode"] = decode_graph(step, spec)
    if checkpoint.plugin.mixes:
        mixed = share_weights(plan.lower(trace_mixed(module, spec)), weights)
        graphs["mixed"], weights = mixed_graph(mixed, spec), weights | mixed.weights
    files = {graph: f"{graph}.{name}.onnx" for graph in graphs}
    data = f"weights.{name}.data"
    initializers = write_weights(folder / data, weights)
    for graph, file in files.items():
        onnx.save_model(finish_model(graphs[graph], initializers), folder / file)
        onnx.checker.check_model(str(folder / file))
    certificate = f"certificate.{name}.json"
    return Variant(device=plan.device, precision=plan.precision, data=(data,), certificate=certificate, **files)


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint goes along, so that `verify` needs the bundle alone."""
    for name in (*checkpoint.files, CHECKPOINT_FILE):
        shutil.copyfile(checkpoint.folder / name, folder / name)
