"""Chooses the variant of a bundle that suits this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statewise.bundles.manifest import Manifest
from statewise.errors import BundleError

# Exact first on the CPU; on CUDA float16, for which it has the faster kernels.
_PREFERENCE = {
    "cpu": ("float32", "int8", "int4", "float16"),
    "cuda": ("float16", "float32", "int8", "int4"),
}


def choose_variant(
    manifest: Manifest,
    requested: str | None,
    devices: Sequence[str] = ("cpu",),
    why_not: Callable[[str], str | None] = lambda _: None,
) -> tuple[str, str]:
    """Return the variant to serve, by name, and why that one.

    `devices` are this machine's, best first; `why_not` says of another one why it is none of them.
    Raises BundleError where the bundle has no such variant, or none for this machine.
    """
    variants = manifest.variants
    known = ", ".join(variants)
    if requested is not None:
        if requested not in variants:
            raise BundleError(f"it has no variant {requested!r} (it has: {known})")
        needed = variants[requested].device
        if needed not in devices:
            reason = why_not(needed)
            raise BundleError(
                f"variant {requested} needs {needed}, which is not available here" + (f": {reason}" if reason else "")
            )
        return requested, "asked for"
    for device in devices:
        for precision in _PREFERENCE[device]:
            for name, variant in variants.items():
                if (variant.device, variant.precision) == (device, precision):
                    return name, f"the preferred one of {known} on {device}"
    raise BundleError(f"it has no variant for this machine's devices, {', '.join(devices)} (it has: {known})")
