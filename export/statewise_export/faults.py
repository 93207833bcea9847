"""Faults of the libraries that make, check and run graphs, as errors of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from statewise.errors import ParityError, StatewiseError

_LIBRARIES = frozenset({"onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch", "google"})
"""Top-level packages whose exceptions tell of a graph; they have no common base."""


@contextmanager
def graph_faults(stage: str) -> Iterator[None]:
    """Raise ParityError with one line instead of a library's exception; a bug of this program passes as it is."""
    try:
        yield
    except StatewiseError:
        raise
    except Exception as error:
        if not _is_library_error(error):
            raise
        line = next((text for text in str(error).splitlines() if text.strip()), "no message")
        raise ParityError(f"{stage}: the graph is not valid or cannot run: {type(error).__name__}: {line}") from error


def _is_library_error(error: Exception) -> bool:
    """Whether a library raised it, by its type; a RuntimeError is of ONNX Runtime's bound runs, or of PyTorch."""
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return type(error) is RuntimeError or bool(packages & _LIBRARIES)
