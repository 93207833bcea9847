"""Checkpoint -> graphs -> certificate -> bundle, and back again for `statewise verify`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from statewise.bundles.certificate import Certificate, check_certificate
from statewise.bundles.reader import open_bundle, resolve_bundle
from statewise.bundles.writer import BundleContent, new_bundle
from statewise.errors import BundleError, ConfigError
from statewise_export.certify.certify import certify
from statewise_export.certify.subject import library_versions
from statewise_export.certify.tolerances import limits
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer, write_variant
from statewise_export.passes.variants import DEFAULT_VARIANT, VariantPlan, plans
from statewise_server.runtime.ort.providers import why_not
from statewise_training.checkpoints.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, Checkpoint, load_checkpoint
from statewise_training.checkpoints.held_out import Pair

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
    limit where absent. `inspect` adds graphs of attention weights or gates to the variants in float32.
    Raises ConfigError where a variant, the name or the version cannot be used, or the disk fails.
    """
    chosen = plans(variants)
    if inspect:
        _check_inspection(checkpoint, chosen)
    with new_bundle(repository, checkpoint.name if name is None else name, version) as draft:
        progress("tracing the model")
        held_out = _held_out(checkpoint)
        tracer = Tracer(checkpoint)
        written = {n: write_variant(n, plan, tracer, draft.folder, inspect=inspect) for n, plan in chosen.items()}
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
        preview = draft.preview(content)
        certificates = {
            variant: certify(
                Trial(preview, variant, tracer, limits(plan.precision, max_kl), held_out, _staged(progress, variant))
            )
            for variant, plan in chosen.items()
        }
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
    """Make a bundle's certificates again from the checkpoint inside it, for the variants whose device is here.

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
    tracer, held_out = Tracer(checkpoint), _held_out(checkpoint)
    return {
        name: Verified(before, certify(Trial(bundle, name, tracer, before.limits, held_out, _staged(progress, name))))
        for name, before in stored.items()
    }


def _staged(progress: Progress, variant: str) -> Progress:
    """Report the stages of one variant under its name."""
    return lambda stage: progress(f"{variant}: {stage}")


def _held_out(checkpoint: Checkpoint) -> NDArray[Any] | list[Pair] | None:
    """Return items, or pairs of source and target, that training has not seen; ConfigError where they do not fit."""
    spec = checkpoint.plugin.spec(checkpoint.config)
    return checkpoint.held_out() if spec.source is None else checkpoint.held_out_pairs()


def _check_inspection(checkpoint: Checkpoint, chosen: Mapping[str, VariantPlan]) -> None:
    plugin = checkpoint.plugin
    if not plugin.inspects(checkpoint.config):
        raise ConfigError(f"--inspect: a model of plugin {plugin.name!r} has neither attention nor gates to show")
    if not any(plan.shows for plan in chosen.values()):
        raise ConfigError(f"--inspect: only variants in float32 show what goes on; add one to {', '.join(chosen)}")


def _copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the checkpoint into the bundle, so that `verify` needs the bundle alone."""
    for name in (*checkpoint.files, CHECKPOINT_FILE):
        shutil.copyfile(checkpoint.folder / name, folder / name)
