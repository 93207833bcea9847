"""Devices of this machine that ONNX Runtime can use, found without asking it: a vain request prints errors."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from statewise.errors import BundleError
from statewise_server.runtime.ort.onnx import onnxruntime

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


def free_cuda_memory() -> int:
    """Bytes that the GPU has free, where `why_not` has found one; this takes some itself, as any use of it does.

    Raises BundleError where CUDA does not say.
    """
    runtime = ctypes.CDLL(f"libcudart.so.{_cuda_major()}")
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    code = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    if code:
        raise BundleError(f"CUDA does not say how much memory is free (error {code}); give --state-memory")
    return free.value


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
    major = _cuda_major()
    # cuDNN compiles kernels with it where it has none ready; only some operators come to that.
    _loads(f"libnvrtc.so.{major}")
    missing = [name for name in _libraries(major) if not _loads(name)]
    if missing:
        return f"{', '.join(missing)} cannot be loaded; install NVIDIA's libraries with `pip install 'statewise[cuda]'`"
    return None


def _cuda_major() -> str:
    return str(onnxruntime.cuda_version.split(".")[0])


def _libraries(cuda_major: str) -> tuple[str, ...]:
    """Libraries that the CUDA provider links to, and cuDNN, which its recurrent operators open on creation."""
    return (
        f"libcudart.so.{cuda_major}",
        f"libcublasLt.so.{cuda_major}",
        f"libcublas.so.{cuda_major}",
        "libcurand.so.10",
        "libcudnn.so.9",
    )


def _loads(name: str) -> bool:
    """Load a library for good, from NVIDIA's wheels or from where the system looks; ONNX Runtime then finds it."""
    # onnxruntime.preload_dlls does the same, and prints what it misses.
    for place in (*_in_wheels(name), name):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False


def _in_wheels(name: str) -> list[str]:
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations if package else None
    return [str(path) for folder in folders or () for path in Path(folder).glob(f"*/lib/{name}")]
