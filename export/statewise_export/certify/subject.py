"""The subject of a certificate: the files that it is valid for, and the libraries it was made with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from statewise.bundles.figures import Limits
from statewise.bundles.reader import Bundle
from statewise.versions import installed_versions


def subject_of(bundle: Bundle, variant_name: str, limits: Limits | None) -> dict[str, Any]:
    """Return the fields of a certificate that do not depend on its checks."""
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
    """Return the versions of the libraries that a bundle's numbers depend on."""
    return installed_versions(
        ("statewise", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
    )
