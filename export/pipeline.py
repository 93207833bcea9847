"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.certify import Scale, certify, library_versions
from export.graphs import decode_graph, finish_model, step_graph
from export.trace import trace_step
from export.weights import write_weights
from statewise.bundle import open_bundle, resolve_bundle
from statewise.bundle_writer import BundleContent, new_bundle
from statewise.certificate import Certificate, check_certificate
from statewise.errors import BundleError
from statewise.manifest import ModelSpec, Variant
from training.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Checkpoint, load_checkpoint
from training.decoding import ReferenceDecoder

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
    progress: Progress = lambda _: None,
) -> Exported:
    """Export a checkpoint into a model repository, as the next version of the model unless one is named.

    Raises ConfigError where the name or version cannot be used, or the disk fails.
    """
    spec = checkpoint.plugin.spec(checkpoint.config)
    with new_bundle(repository, checkpoint.name if name is None else name, version) as draft:
        progress("tracing the model")
        variant = _write_graphs(checkpoint, spec, draft.folder)
        _copy_checkpoint(checkpoint, draft.folder)
        content = BundleContent(
            plugin=checkpoint.plugin.name,
            plugin_config=checkpoint.config.model_dump(mode="json"),
            model=spec,
            variants={CPU_FLOAT32: variant},
            created_with=library_versions(),
            special_tokens=checkpoint.special_tokens,
            tokenizer=TOKENIZER_FILE if checkpoint.tokenizer_file else None,
        )
        bundle = draft.preview(content)
        certificate = certify(bundle, CPU_FLOAT32, _reference(checkpoint), _scale(checkpoint), progress)
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
    """Make every certificate of a bundle again, from the checkpoint inside it.

    Raises BundleError where the bundle is damaged or not certified, NotFoundError where there is none.
    """
    bundle = open_bundle(resolve_bundle(path))
    stored = {name: check_certificate(bundle, name) for name in bundle.manifest.variants}
    if CHECKPOINT_FILE not in bundle.manifest.files:
        raise BundleError(f"{bundle}: holds no {CHECKPOINT_FILE}, so there is nothing to verify it against")
    checkpoint = load_checkpoint(bundle.folder)
    reference, scale = _reference(checkpoint), _scale(checkpoint)
    return {name: Verified(stored[name], certify(bundle, name, reference, scale, progress)) for name in stored}


def _reference(checkpoint: Checkpoint) -> ReferenceDecoder:
    return ReferenceDecoder(checkpoint.in_raw_units(), checkpoint.plugin.spec(checkpoint.config))


def _scale(checkpoint: Checkpoint) -> Scale:
    standardization = checkpoint.standardization
    return Scale(standardization.mean, standardization.deviation) if standardization else Scale()


def _write_graphs(checkpoint: Checkpoint, spec: ModelSpec, folder: Path) -> Variant:
    """Write the graphs and the weights that they share."""
    traced = trace_step(checkpoint.in_raw_units(), spec)
    variant = Variant(
        device="cpu",
        precision="float32",
        step=f"step.{CPU_FLOAT32}.onnx",
        # A Loop would copy caches at every step; they are appended to in place, one step to a run.
        decode=None if any(s.kind == "cache" for s in spec.state) else f"decode.{CPU_FLOAT32}.onnx",
        data=(f"weights.{CPU_FLOAT32}.data",),
        certificate=f"certificate.{CPU_FLOAT32}.json",
    )
    weights = write_weights(folder / variant.data[0], traced.weights)
    for file, build in zip(variant.graphs, (step_graph, decode_graph), strict=False):
        model = finish_model(build(traced, spec), weights)
        onnx.save_model(model, folder / file)
        onnx.checker.check_model(str(folder / file))
    return variant


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint goes along, so that `verify` needs the bundle alone."""
    names = [WEIGHTS_FILE, CHECKPOINT_FILE, *([TOKENIZER_FILE] if checkpoint.tokenizer_file else [])]
    for name in names:
        shutil.copyfile(checkpoint.folder / name, folder / name)
