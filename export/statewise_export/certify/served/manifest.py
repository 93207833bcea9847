"""The manifest against the checkpoint: the server obeys the one, and the reference is the other."""

from __future__ import annotations

from statewise.bundles.reader import hash_file
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.trial import Trial


def _run(trial: Trial) -> list[Outcome]:
    manifest, checkpoint = trial.bundle.manifest, trial.checkpoint
    pairs = [
        ("plugin", manifest.plugin, checkpoint.plugin.name),
        ("model", manifest.model, trial.spec),
        ("special tokens", manifest.special_tokens, checkpoint.special_tokens),
        ("tokenizer", *_tokenizers(trial)),
    ]
    differences = [f"{name}: {ours}, in the checkpoint {theirs}" for name, ours, theirs in pairs if ours != theirs]
    figure = "; ".join(differences) or f"{', '.join(name for name, *_ in pairs)} are the checkpoint's"
    return [Outcome("manifest = checkpoint", not differences, figure)]


def _tokenizers(trial: Trial) -> tuple[str | None, str | None]:
    """Hashes of the bundle's tokenizer and of the checkpoint's."""
    name, own = trial.bundle.manifest.tokenizer, trial.checkpoint.tokenizer_file
    return hash_file(trial.bundle.path(name)) if name else None, hash_file(own) if own else None


MANIFEST = Check("the manifest", lambda _: True, _run)
