"""The wheel in environments that pip makes from a package index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.environments import ROOT, Environment, build, make_working_folder
from tests.models import make_repository

pytestmark = pytest.mark.install

HEAVY = {"onnxruntime", "onnxruntime-gpu", "onnx", "tokenizers", "prometheus-client", "pydantic-settings", "pyyaml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working copy."""
    return build(tmp_path_factory.mktemp("distributions"))[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one model that reads text."""
    return make_repository(tmp_path_factory.mktemp("models"), "gru-text")


def pip(*arguments: str | Path) -> None:
    """Run pip with the tested versions."""
    command = [
        sys.executable,
        "-m",
        "pip",
        *map(str, arguments),
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run(command, check=True)


def install(folder: Path, requirement: str) -> Environment:
    """A fresh environment with a requirement and what it brings."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment = Environment(folder / "bin" / "python", make_working_folder(folder / "working"))
    pip("--python", environment.python, "install", requirement)
    return environment


def planned(tmp_path: Path, requirement: str) -> set[str]:
    """The distributions that pip would install."""
    pip("install", "--dry-run", "--ignore-installed", "--report", tmp_path / "report.json", requirement)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return {entry["metadata"]["name"].lower().replace("_", "-") for entry in report["install"]}


def test_the_base_brings_the_client_alone(tmp_path: Path) -> None:
    """`pip install .` brings no ONNX Runtime and nothing else that serves or trains."""
    names = planned(tmp_path, str(ROOT))

    assert names & {*HEAVY, "torch", "matplotlib"} == set()
    assert {"statewise", "grpcio", "numpy", "protobuf", "pydantic", "rich", "typer"} <= names


def test_the_server_brings_no_torch(tmp_path: Path) -> None:
    """`pip install '.[server]'` brings ONNX Runtime, and neither PyTorch nor Matplotlib."""
    names = planned(tmp_path, f"{ROOT}[server]")

    assert names & {"torch", "matplotlib", "lightning"} == set()
    assert HEAVY - {"onnxruntime", "onnxruntime-gpu"} <= names
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1


def test_a_fresh_base_generates_from_a_fresh_server(wheel: Path, models: Path, tmp_path: Path) -> None:
    """Two environments with what pip installs, and no more: one serves, the other asks it."""
    server, base = install(tmp_path / "server", f"{wheel}[server]"), install(tmp_path / "base", str(wheel))

    with server.serving(server.module, models, tmp_path) as address:
        options = ("--address", address, "--max-tokens", "5", "--seed", "1", "--json")
        answer = json.loads(base.check(*base.script, "generate", "gru-text", "hello", *options))
    refused = base.run(*base.module, "serve", "--models", models)

    assert answer["usage"]["completion_tokens"] > 0
    assert (refused.returncode, "pip install 'statewise[server]'" in refused.stderr) == (2, True)
