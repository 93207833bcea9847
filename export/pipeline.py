"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.certify import Scale, certify, library_versions
from export.graphs import decode_graph, finish_model, step_graph
from export.trace import TracedStep, trace_step
from export.variants import VARIANTS, VariantPlan
from export.weights import write_weights
from server.runtime.providers import why_not
from statewise.bundle import open_bundle, resolve_bundle
from statewise.bundle_writer import BundleContent, new_bundle
from statewise.certificate import Certificate, check_certificate
from statewise.errors import BundleError, ConfigError
from statewise.manifest import ModelSpec, Variant
from training.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Checkpoint, load_checkpoint
from training.decoding import ReferenceDecoder
from training.transformer.attention import attention_lowering

Progress = Callable[[str], None]

CPU_FLOAT32 = "cpu-float32"


@dataclass(frozen=True)
class Exported:
    """The outcome of an export."""

    certificate: Certificate
    folder: Path | None
    """The bundle; None where parity was missed, since then none is made."""


def export_checkpoint(
    checkpoint: Checkpoint,
    repository: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    variant_name: str = CPU_FLOAT32,
    progress: Progress = lambda _: None,
) -> Exported:
    """Export a checkpoint into a model repository, as the next version of the model unless one is named.

    Raises ConfigError where the variant, the name or the version cannot be used, or the disk fails.
    """
    plan = _plan(variant_name)
    spec = checkpoint.plugin.spec(checkpoint.config)
    with new_bundle(repository, checkpoint.name if name is None else name, version) as draft:
        progress("tracing the model")
        variant = write_variant(checkpoint, variant_name, plan, draft.folder)
        _copy_checkpoint(checkpoint, draft.folder)
        content = BundleContent(
            plugin=checkpoint.plugin.name,
            plugin_config=checkpoint.config.model_dump(mode="json"),
            model=spec,
            variants={variant_name: variant},
            created_with=library_versions(),
            special_tokens=checkpoint.special_tokens,
            tokenizer=TOKENIZER_FILE if checkpoint.tokenizer_file else None,
        )
        bundle = draft.preview(content)
        certificate = certify(bundle, variant_name, reference_of(checkpoint), scale_of(checkpoint), progress)
        if not certificate.passed:
            return Exported(certificate, None)
        (draft.folder / variant.certificate).write_text(certificate.to_json(), encoding="utf-8")
        return Exported(certificate, draft.commit(content))


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
        raise BundleError(
            f"{bundle}: no variant of it runs here: {'; '.join(f'{n}: {r}' for n, r in elsewhere.items())}"
        )
    if CHECKPOINT_FILE not in bundle.manifest.files:
        raise BundleError(f"{bundle}: holds no {CHECKPOINT_FILE}, so there is nothing to verify it against")
    checkpoint = load_checkpoint(bundle.folder)
    reference, scale = reference_of(checkpoint), scale_of(checkpoint)
    return {name: Verified(stored[name], certify(bundle, name, reference, scale, progress)) for name in stored}


def reference_of(checkpoint: Checkpoint) -> ReferenceDecoder:
    """What a bundle of the checkpoint is held against."""
    return ReferenceDecoder(checkpoint.in_raw_units(), checkpoint.plugin.spec(checkpoint.config))


def scale_of(checkpoint: Checkpoint) -> Scale:
    """The scale of the vectors that the checkpoint's model reads."""
    standardization = checkpoint.standardization
    return Scale(standardization.mean, standardization.deviation) if standardization else Scale()


def _plan(name: str) -> VariantPlan:
    if name not in VARIANTS:
        raise ConfigError(f"--variant {name}: there is no such variant (there are: {', '.join(VARIANTS)})")
    reason = why_not(VARIANTS[name].device)
    if reason:
        raise ConfigError(f"--variant {name}: it is certified where it runs, which is not here: {reason}")
    return VARIANTS[name]


def write_variant(checkpoint: Checkpoint, name: str, plan: VariantPlan, folder: Path) -> Variant:
    """Write the graphs of a variant and the weights that they share."""
    spec = checkpoint.plugin.spec(checkpoint.config)
    has_caches = any(s.kind == "cache" for s in spec.state)
    variant = Variant(
        device=plan.device,
        precision=plan.precision,
        step=f"step.{name}.onnx",
        # A Loop would copy caches at every step; they are appended to in place, one step to a run.
        decode=None if has_caches else f"decode.{name}.onnx",
        data=(f"weights.{name}.data",),
        state_dtype="float16" if plan.precision == "float16" else "float32",
        ragged_prefill=not has_caches or plan.attention == "standard",
        certificate=f"certificate.{name}.json",
    )
    traced = _trace(checkpoint, spec, plan)
    spec = spec.with_state_dtype(variant.state_dtype)
    weights = write_weights(folder / variant.data[0], traced.weights)
    for file, build in zip(variant.graphs, (step_graph, decode_graph), strict=False):
        model = finish_model(build(traced, spec), weights)
        onnx.save_model(model, folder / file)
        onnx.checker.check_model(str(folder / file))
    return variant


def _trace(checkpoint: Checkpoint, spec: ModelSpec, plan: VariantPlan) -> TracedStep:
    with attention_lowering(plan.attention):
        traced = trace_step(checkpoint.in_raw_units(), spec)
    for lower in plan.passes:
        traced = lower(traced)
    return traced


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint goes along, so that `verify` needs the bundle alone."""
    names = [WEIGHTS_FILE, CHECKPOINT_FILE, *([TOKENIZER_FILE] if checkpoint.tokenizer_file else [])]
    for name in names:
        shutil.copyfile(checkpoint.folder / name, folder / name)
