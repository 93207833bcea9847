"""`statewise.load`: a model in this process. ONNX Runtime is imported when it is called, not before."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statewise.errors import ConfigError
from statewise.extras import explain_missing

if TYPE_CHECKING:
    from statewise_server.local.model import Model


def load(path: str | Path, variant: str | None = None, **settings: Any) -> Model:
    """Load a bundle's folder (`models/NAME/VERSION`), or the newest version in a model's folder (`models/NAME`).

    `variant` is chosen as a server chooses it, and `settings` are a server's of one engine (`max_rows=64`,
    `state_memory="2GB"`). Close the model, or use it in a `with`, to free its memory.
    Raises NotFoundError or BundleError for what cannot be loaded, and ConfigError for a bad setting, or where the
    packages that run models are not installed.
    """
    try:
        # By name: this package imports nothing of the server's, and without its extra there is nothing to import.
        loader = import_module("statewise_server.local.load")
    except ModuleNotFoundError as error:
        hint = explain_missing(error, "server") or f"{error}; this needs: pip install 'statewise[server]'"
        raise ConfigError(f"a model cannot be loaded: {hint}") from error
    model: Model = loader.load(path, variant, **settings)
    return model
