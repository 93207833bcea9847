"""Small real models, trained by nobody: random weights, exported and certified once per test run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports ONNX Runtime or torch: no telemetry, and no thread pools larger than small models can use.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.models import MODELS, make_repository


@pytest.fixture(scope="session", autouse=True)
def _leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this process and its children make in the temporary folder goes with them; tests' own folders stay."""
    tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(prefix="statewise-test-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        yield


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with every model of tests.models. Not to be written to: copy it first."""
    return make_repository(tmp_path_factory.mktemp("repository"), *MODELS)


@pytest.fixture(scope="session")
def engine_of(repository: Path) -> Iterator[Callable[..., Any]]:
    """Start an engine on a model of the repository, with settings; all are closed at the end."""
    from statewise.bundles.reader import find_bundle, open_bundle
    from statewise_server.engine import Engine, EngineSettings

    engines: list[Engine] = []

    def start(name: str, **settings: Any) -> Engine:
        bundle = open_bundle(find_bundle(repository, name), check_hashes=False)
        engine = Engine.load(bundle, "cpu-float32", EngineSettings(**{"state_memory": "256MB"} | settings))
        engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()
