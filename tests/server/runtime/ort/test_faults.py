"""What is told of a step that failed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from statewise.errors import InternalError, OverloadedError, StatewiseError, UnavailableError
from statewise_server.runtime.ort.faults import step_error
from statewise_server.runtime.ort.sessions import create_session

CUDA = "CUDA failure {}: {} ; GPU=0 ; hostname=h ; file=/onnxruntime_src/x.cc ; line=129 ; expr=cudaMalloc(p, size); "


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CUDA.format(2, "out of memory"), OverloadedError),
        (
            "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 1",
            OverloadedError,
        ),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OverloadedError),
        ("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0", UnavailableError),
        (CUDA.format(700, "an illegal memory access was encountered"), UnavailableError),
        (CUDA.format(719, "unspecified launch failure"), UnavailableError),
        (CUDA.format(214, "uncorrectable ECC error encountered"), UnavailableError),
        (CUDA.format(999, "unknown error"), UnavailableError),
        (CUDA.format(700, "illegal access") + "Failed to allocate memory for requested buffer", UnavailableError),
        (CUDA.format(1, "invalid argument"), InternalError),
        (CUDA.format(701, "too many resources requested for launch"), InternalError),
        ("Non-zero status code returned while running Gather node: indices out of bounds", InternalError),
    ],
)
def test_a_fault_is_told_by_its_words(text: str, kind: type[StatewiseError]) -> None:
    """Memory can be had later, a device that has failed cannot be had here, and the rest is the server's fault."""
    assert type(step_error(RuntimeError(text), "m")) is kind


def test_a_run_that_finds_no_memory_is_told_as_that() -> None:
    """The words are ONNX Runtime's own: a run that asks for 256 TiB is overload, not a fault of the server."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["zeros"])],
        "huge",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("zeros", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = create_session(model.SerializeToString())

    with pytest.raises(Exception, match="Failed to allocate") as failure:
        session.run(None, {"shape": np.array([1 << 46])})

    assert isinstance(step_error(failure.value, "m"), OverloadedError)
    assert isinstance(step_error(MemoryError(), "m"), OverloadedError)
