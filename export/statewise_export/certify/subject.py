"""What a certificate speaks for, and by what means."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from statewise.bundles.certificate import Limits
from statewise.bundles.reader import Bundle
from statewise.versions import installed_versions


def subject_of(bundle: Bundle, variant_name: str, limits: Limits | None) -> dict[str, Any]:
    """What every certificate of this variant says, whatever it finds."""
    return {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "variant": variant_name,
        "reference": "pytorch" if limits is None else "itself",
        "limits": limits,
        "libraries": library_versions(),
        "files": bundle.variant_files(variant_name),
        "created": datetime.now(UTC),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a bundle's numbers depend on."""
    return installed_versions(
        ("statewise", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
    )
