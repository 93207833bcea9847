"""What `import statewise` offers, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import statewise


def test_public_names() -> None:
    """A name is added here on purpose; one that goes away breaks other programs."""
    assert sorted(statewise.__all__) == [
        "AsyncClient",
        "BundleError",
        "CancelledError",
        "Chunk",
        "Client",
        "ConfigError",
        "DataLossError",
        "DeadlineExceededError",
        "DivergedError",
        "Forecast",
        "Generation",
        "GenerationInfo",
        "Hypothesis",
        "Inspection",
        "InternalError",
        "InvalidRequestError",
        "ModelInfo",
        "NotFoundError",
        "OverloadedError",
        "ParityError",
        "PluginConfig",
        "Prediction",
        "PredictionInfo",
        "SamplingParams",
        "Score",
        "SequencePlugin",
        "StatewiseError",
        "Tag",
        "TokenLogProbability",
        "UnavailableError",
        "Usage",
        "__version__",
        "load",
    ]
    assert all(hasattr(statewise, name) for name in statewise.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """Each public name is imported in the module's text, where type checkers and editors look for it."""
    tree = ast.parse(Path(statewise.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}

    assert set(statewise.__all__) - imported == {"__version__"}
    assert set(statewise.__all__) <= set(dir(statewise))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'statewise' has no attribute 'Klient'"):
        _ = statewise.Klient


def imported(statement: str, *packages: str) -> list[str]:
    """Those of the packages that a statement imports, in a process of its own."""
    program = f"import sys\n{statement}\nprint(*sorted({set(packages)} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_importing_statewise_imports_nothing_else() -> None:
    """The errors are there at once; what has dependencies is imported when it is first used."""
    packages = ("grpc", "numpy", "pydantic", "google.protobuf", "typer", "importlib.metadata", "statewise.v1")

    assert imported("import statewise; statewise.ConfigError", *packages) == []


def test_client_needs_neither_torch_nor_onnxruntime() -> None:
    """A client's process imports no torch, no ONNX Runtime, no training and no server; nor pydantic."""
    ours = ("statewise_server", "statewise_training", "statewise_export")

    assert imported("from statewise import Client", "grpc", "torch", "onnxruntime", "onnx", "pydantic", *ours) == [
        "grpc"
    ]


def test_plugins_need_no_grpc() -> None:
    """The plugin API is there without a client."""
    assert imported("from statewise import SequencePlugin", "grpc", "torch", "pydantic") == ["pydantic"]


def test_the_protocols_of_modules_need_no_torch() -> None:
    """A plugin's module is described to type checkers alone."""
    assert imported("import statewise.modules", "torch", "numpy", "pydantic") == []
