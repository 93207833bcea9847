"""ONNX Runtime sessions: which options, and errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from statewise.errors import BundleError
from statewise_server.runtime.ort.cores import num_threads
from statewise_server.runtime.ort.cuda_session import CudaSession
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.providers import why_not

ERROR_SEVERITY = 3

_CUDA_OPTIONS = {
    "device_id": "0",
    # By default the arena doubles whenever it grows, and takes the memory that state is to have.
    "arena_extend_strategy": "kSameAsRequested",
    # TensorFloat-32 rounds products to 10 bits, far outside a float32 certificate.
    "use_tf32": "0",
}

_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]
"""It takes some norms of a graph and leaves others, not the same in the graphs of one bundle; its kernel rounds
differently, and these must not."""


def create_session(
    model: Path | bytes,
    *,
    device: str = "cpu",
    intra_op_threads: int = 0,
    captures: bool = False,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph, from a file or from its bytes, for a device.

    `intra_op_threads`: threads of one run on the CPU; 0 means every core that this process may use.
    `captures`: whether runs on CUDA may be captured; all whose `gpu_graph_id` is not -1 are then.
    `profile`: prefix of the file to which the session writes each operator's time, once asked to.
    Raises BundleError where the device is not available here, or ONNX Runtime refuses the graph.
    """
    name = model.name if isinstance(model, Path) else "a graph of the server's own"
    reason = why_not(device)
    if reason:
        raise BundleError(f"{name}: cannot run on {device}: {reason}")
    options = _options(intra_op_threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session_class = CudaSession if device == "cuda" else onnxruntime.InferenceSession
        session = session_class(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=_providers(device, captures=captures),
            enable_fallback=0,
            disabled_optimizers=_DISABLED_OPTIMIZERS,
        )
    except Exception as error:  # ONNX Runtime's exception types have no common base of their own
        raise BundleError(f"{name}: ONNX Runtime cannot load it: {first_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        # It goes on without a provider that it cannot start.
        raise BundleError(f"{name}: ONNX Runtime could not start its CUDA provider, for a reason that it has printed")
    return session


def inputs_of_all(sessions: Iterable[onnxruntime.InferenceSession]) -> set[str]:
    """Names of the inputs that every one of these graphs declares."""
    return set.intersection(*({value.name for value in session.get_inputs()} for session in sessions))


def _options(intra_op_threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads(intra_op_threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = ERROR_SEVERITY
    # The first run's shapes say nothing of the next one's: rows come and go.
    options.enable_mem_pattern = False
    # Threads that spin between runs take the core that serves the network.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Else x86 processors without VNNI cut sums of 8-bit products off at 16 bits; for others it changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _providers(device: str, *, captures: bool) -> list[Any]:
    # Beside CUDA the CPU stays: ONNX Runtime computes shapes there, and control flow.
    cuda = _CUDA_OPTIONS | ({"enable_cuda_graph": "1"} if captures else {})
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"][0 if device == "cuda" else 1 :]


def first_line(error: Exception) -> str:
    """The part of a native error's message that a person can use."""
    return next(iter(str(error).splitlines()), type(error).__name__)
