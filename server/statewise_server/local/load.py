"""Loading of one bundle into this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from statewise.bundles.onnx_check import check_graphs
from statewise.bundles.reader import resolve_bundle
from statewise.errors import ConfigError
from statewise_server.engine.settings import EngineSettings, describe_faults
from statewise_server.local.model import Model
from statewise_server.repository.loading import load_parts, open_certified


def load(path: str | Path, variant: str | None = None, **settings: Any) -> Model:
    """Load a bundle's folder, or the newest version in a model's folder; settings are those of `EngineSettings`.

    The hashes, the certificate and the graphs are checked as a server checks them. A server also tries the bundle in a
    child process, to outlive a crash of ONNX Runtime; here the process is the caller's own, and there is no trial.
    Raises NotFoundError or BundleError for what cannot be loaded, ConfigError for a bad setting.
    """
    try:
        checked = EngineSettings(**settings)
    except ValidationError as error:
        faults = "; ".join(describe_faults(error, EngineSettings.model_fields))
        raise ConfigError(f"these settings cannot be used: {faults}") from error
    bundle, chosen, _ = open_certified(resolve_bundle(Path(path)), variant)
    check_graphs(bundle, chosen)
    engine, predictor = load_parts(bundle, chosen, checked)
    return Model(bundle.manifest, chosen, engine, predictor)
