"""Translates failures of ONNX Runtime and CUDA into errors for the requests of the run."""

from __future__ import annotations

import re

from statewise.errors import InternalError, OverloadedError, StatewiseError, UnavailableError

_OUT_OF_MEMORY = re.compile(
    r"Failed to allocate memory"
    r"|is smaller than requested bytes"
    r"|CUDA failure 2:"  # cudaErrorMemoryAllocation
    r"|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
)

_STICKY = re.compile(
    # Errors of CUDA's runtime that leave the process without a usable context, and the unknown one.
    r"CUDA failure (4|214|220|226|700|702|71\d|720|999):"
    r"|CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
)


def step_error(error: BaseException, model: str) -> StatewiseError:
    """Return the error for the failed step's requests.

    OverloadedError: there was no memory for it. UnavailableError: the device is of no more use to this process.
    Anything else is an InternalError.
    """
    text = str(error)
    # First the device: what follows a sticky error fails for whatever reason.
    if _STICKY.search(text):
        return UnavailableError(f"model {model!r}: its device has failed; retry elsewhere")
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return OverloadedError(f"model {model!r}: not enough memory for a step; retry later, or with shorter prompts")
    return InternalError(f"a step failed: {type(error).__name__}; the request may be retried")
