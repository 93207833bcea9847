"""Which devices there are, found out in silence."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statewise.errors import BundleError
from statewise_server.runtime.ort import providers
from statewise_server.runtime.ort.providers import available_devices, why_not
from statewise_server.runtime.ort.sessions import create_session


def test_devices_are_listed_without_a_word() -> None:
    """A process that looks for devices prints the list and nothing else, whether or not one is CUDA."""
    program = "from statewise_server.runtime.ort.providers import available_devices; print(*available_devices())"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() in (["cpu"], ["cuda", "cpu"])


def test_the_cpu_is_always_there() -> None:
    """The CPU comes last, and an unknown device is none."""
    assert available_devices()[-1] == "cpu"
    assert "tpu is no device" in (why_not("tpu") or "")


@pytest.mark.skipif(why_not("cuda") is None, reason="this machine has CUDA")
def test_a_graph_for_a_device_that_is_not_there_is_refused() -> None:
    """A session on CUDA is refused with the reason, before ONNX Runtime could fall back on the CPU and print."""
    with pytest.raises(BundleError, match="cannot run on cuda: ") as refused:
        create_session(b"", device="cuda")

    assert why_not("cuda") in str(refused.value)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """With a GPU but without NVIDIA's libraries, the reason names them and the extra that installs them, in silence."""
    monkeypatch.setattr(providers, "_libraries", lambda _: ("libcudart.so.0", "libm.so.6"))

    reason = providers._library_problem()

    assert reason == "libcudart.so.0 cannot be loaded; install NVIDIA's libraries with `pip install 'statewise[cuda]'`"
    assert capfd.readouterr() == ("", "")


def test_libraries_are_found_in_nvidias_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that only a wheel of NVIDIA's has, beside other packages, is loaded from there."""
    name = "libstatewise_probe.so.1"
    assert not providers._loads(name)
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    shutil.copy(mapped("libm.so.6"), folder / name)

    monkeypatch.syspath_prepend(tmp_path)

    assert providers._loads(name)


def mapped(name: str) -> Path:
    """The file of a library that this process has loaded."""
    ctypes.CDLL(name)
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    return next(Path(line.split()[-1]) for line in lines if line.split()[-1].endswith(f"/{name}"))
