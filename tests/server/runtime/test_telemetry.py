"""What importing Statewise does to a machine: nothing is written, nothing heavy is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def import_in_a_new_home(statement: str, home: Path) -> set[str]:
    """Run a statement in a process of its own whose home is an empty folder; return what it left there."""
    home.mkdir()
    # Nothing but what a program needs to start: ONNX Runtime keeps still where variables tell of a CI machine.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", statement], env=environment, check=True, timeout=60)
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def test_importing_onnx_runtime_through_its_one_module_writes_nothing(tmp_path: Path) -> None:
    """No device id appears under the user's home, though the variable was not set before."""
    assert import_in_a_new_home("import statewise_server.runtime.ort.onnx", tmp_path / "ours") == set()


def test_a_session_writes_nothing_either(tmp_path: Path) -> None:
    """Nor does creating a session and running it."""
    statement = """
import numpy as np
from onnx import TensorProto, helper
from statewise_server.runtime.ort.onnx import onnxruntime
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones(1, np.float32)})
"""
    assert import_in_a_new_home(statement, tmp_path / "session") == set()


@pytest.mark.skipif(sys.platform != "linux", reason="only ONNX Runtime's Linux wheels write a device id on import")
def test_importing_onnx_runtime_bare_does_write(tmp_path: Path) -> None:
    """The control: without the variable a file appears, so the tests above would see one."""
    assert import_in_a_new_home("import onnxruntime", tmp_path / "bare") != set()


@pytest.mark.parametrize(
    "module", ["statewise_server", "statewise_server.app", "statewise_server.cli", "statewise", "statewise.cli"]
)
def test_the_server_and_the_client_import_no_torch(module: str) -> None:
    """Neither torch nor Lightning, nor the packages that need them, is loaded."""
    heavy = "{'torch', 'lightning', 'training', 'export', 'onnxscript'}"
    statement = f"import sys, {module}; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"

    subprocess.run([sys.executable, "-c", statement], check=True, timeout=60)
