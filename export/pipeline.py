"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.certify import Scale, certify, library_versions
from export.graphs import decode_graph, finish_model, mixed_graph, step_graph
from export.trace import trace_mixed, trace_step
from export.weights import share_weights, write_weights
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
    module = checkpoint.in_raw_units()
    traced = trace_step(module, spec)
    graphs, weights = {"step": step_graph(traced, spec)}, traced.weights
    if not any(s.kind == "cache" for s in spec.state):
        # A Loop would copy caches at every step; they are appended to in place, one step to a run.
        graphs["decode"] = decode_graph(traced, spec)
    if checkpoint.plugin.mixes:
        mixed = share_weights(trace_mixed(module, spec), weights)
        graphs["mixed"], weights = mixed_graph(mixed, spec), weights | mixed.weights
    files = {name: f"{name}.{CPU_FLOAT32}.onnx" for name in graphs}
    data = f"weights.{CPU_FLOAT32}.data"
    initializers = write_weights(folder / data, weights)
    for name, graph in graphs.items():
        onnx.save_model(finish_model(graph, initializers), folder / files[name])
        onnx.checker.check_model(str(folder / files[name]))
    certificate = f"certificate.{CPU_FLOAT32}.json"
    return Variant(device="cpu", precision="float32", data=(data,), certificate=certificate, **files)


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint goes along, so that `verify` needs the bundle alone."""
    names = [WEIGHTS_FILE, CHECKPOINT_FILE, *([TOKENIZER_FILE] if checkpoint.tokenizer_file else [])]
    for name in names:
        shutil.copyfile(checkpoint.folder / name, folder / name)
