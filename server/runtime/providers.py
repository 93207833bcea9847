"""Which devices this machine has for ONNX Runtime, looked at before it is asked: asked in vain, it prints errors."""

from __future__ import annotations

import contextlib
import ctypes
import io
from functools import cache

from server.runtime.onnx import onnxruntime

_CUDA_NO_DEVICE = 100


def available_devices() -> tuple[str, ...]:
    """The devices that a variant may name, best first."""
    return tuple(device for device in ("cuda", "cpu") if why_not(device) is None)


@cache
def why_not(device: str) -> str | None:
    """Why nothing can run on a device here, None where it can.

    For CUDA this loads NVIDIA's libraries into the process, where ONNX Runtime then finds them.
    """
    if device == "cpu":
        return None
    if device != "cuda":
        return f"{device} is no device that Statewise knows (cpu, cuda)"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "the installed ONNX Runtime has no CUDA support; on Linux x86-64, install onnxruntime-gpu"
    return _driver_problem() or _library_problem()


def _driver_problem() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code == _CUDA_NO_DEVICE or (code == 0 and count.value == 0):
        return "the NVIDIA driver sees no GPU"
    return f"the NVIDIA driver fails with error {code}" if code else None


def _library_problem() -> str | None:
    # It looks where the wheels of statewise[cuda] put them, and prints what it misses; which is for us to say.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        onnxruntime.preload_dlls()
    missing = [name for name in _libraries(onnxruntime.cuda_version) if not _loads(name)]
    if missing:
        return f"{', '.join(missing)} cannot be loaded; install NVIDIA's libraries with `pip install statewise[cuda]`"
    return None


def _libraries(cuda_version: str) -> tuple[str, ...]:
    """What the CUDA provider is linked to, and cuDNN, which its recurrent operators open when they are made."""
    major = cuda_version.split(".")[0]
    return (
        f"libcudart.so.{major}",
        f"libcublasLt.so.{major}",
        f"libcublas.so.{major}",
        "libcurand.so.10",
        "libcudnn.so.9",
    )


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
