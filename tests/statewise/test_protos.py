"""The committed stubs and the definitions that they are made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "statewise" / "v1"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make protos` writes, with the Python that runs the tests in place of the one in .venv."""
    out = tmp_path_factory.mktemp("protos")
    variables = [f"PROTO_OUT={out}", f"BIN={Path(sys.executable).parent}", "READY="]
    subprocess.run(["make", "--directory", str(ROOT), "protos", *variables], check=True, capture_output=True)
    return out / "statewise" / "v1"


def test_stubs_are_those_that_make_protos_writes(generated: Path) -> None:
    """A change in protos/ comes with its stubs, and nobody edits a stub."""
    committed = {path.name for path in STUBS.glob("*_pb2*")}

    assert committed == {path.name for path in generated.iterdir()}
    for name in committed:
        assert (STUBS / name).read_text() == (generated / name).read_text(), f"run `make protos`: {name}"
