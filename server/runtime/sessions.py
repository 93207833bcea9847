"""ONNX Runtime sessions: which options, and errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path

from server.runtime.onnx import onnxruntime
from statewise.errors import BundleError

ERROR_SEVERITY = 3


def create_session(path: Path, *, intra_op_threads: int = 0) -> onnxruntime.InferenceSession:
    """Load a graph for the CPU.

    `intra_op_threads`: threads of one run; 0 means every core that this process may use.
    Raises BundleError where ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads or _num_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERROR_SEVERITY
    # The first run's shapes say nothing of the next one's: rows come and go.
    options.enable_mem_pattern = False
    # Threads that spin between runs take the core that serves the network.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Else x86 processors without VNNI cut sums of 8-bit products off at 16 bits; for others it changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception types have no common base of their own
        raise BundleError(f"{path.name}: ONNX Runtime cannot load it: {first_line(error)}") from error


def _num_cores() -> int:
    # Where the operating system can say it, the cores of this process rather than of the machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_line(error: Exception) -> str:
    """The part of a native error's message that a person can use."""
    return next(iter(str(error).splitlines()), type(error).__name__)
