"""Which devices there are, found out in silence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server.runtime import providers
from server.runtime.providers import available_devices, why_not
from server.runtime.sessions import create_session
from statewise.errors import BundleError


def test_devices_are_listed_without_a_word() -> None:
    """A process that looks for devices prints the list and nothing else, whether or not one is CUDA."""
    program = "from server.runtime.providers import available_devices; print(*available_devices())"

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

    assert reason == ("libcudart.so.0 cannot be loaded; install NVIDIA's libraries with `pip install statewise[cuda]`")
    assert capfd.readouterr() == ("", "")
