"""The extras of the distribution, and how to install the one that a missing package comes with."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "server": (
        *("onnxruntime", "onnx", "tokenizers", "grpc_health", "grpc_reflection"),
        *("prometheus_client", "pydantic_settings", "yaml"),
    ),
    "plot": ("matplotlib",),
    "train": ("filelock", "lightning", "onnxscript", "safetensors", "torch", "torchmetrics"),
    "demos": ("babel", "sklearn", "vega_datasets"),
    "ray": ("ray",),
}
"""The packages that each extra adds, by the names under which they are imported."""

_INCLUDED = {"train": ("server", "plot"), "demos": ("train",), "ray": ("server",)}
"""The extras that an extra includes, as pyproject.toml has them."""


def explain_missing(error: ImportError, extra: str | None = None) -> str | None:
    """Return how to install a package that is missing; None where it comes with no extra.

    `extra` is the extra that the caller needs as a whole; it is named if the package comes with it.
    """
    package = (error.name or "").partition(".")[0]
    home = next((name for name, packages in EXTRAS.items() if package in packages), None)
    if home is None:
        return None
    wanted = extra if extra and package in packages_of(extra) else home
    return f"{package} is not installed; this needs: pip install 'statewise[{wanted}]'"


def packages_of(extra: str) -> tuple[str, ...]:
    """The packages of an extra, with those of the extras that it includes."""
    return (*EXTRAS[extra], *(name for other in _INCLUDED.get(extra, ()) for name in packages_of(other)))


def is_installed(extra: str) -> bool:
    """Whether every package of an extra can be found; none is imported."""
    return _first_missing(extra) is None


def require(extra: str) -> None:
    """Find what is missing before the work, not after it. Raises ModuleNotFoundError, naming the package."""
    if package := _first_missing(extra):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _first_missing(extra: str) -> str | None:
    return next((package for package in packages_of(extra) if find_spec(package) is None), None)
