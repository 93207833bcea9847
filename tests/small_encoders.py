"""A small real one-shot model, made with onnx.helper: sums the vectors of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from statewise.bundles.manifest import Variant
from statewise.bundles.writer import BundleContent, new_bundle
from statewise.model.spec import LabelsHead, ModelSpec, TokenInput
from statewise_server.runtime.one_shot import OneShotRunner
from statewise_server.runtime.ort.sessions import create_session
from tests.small_bundles import CERTIFICATE, VARIANT, certify

NAN_TOKEN = 7
UNKNOWN_TOKEN = 8
"""Inside the declared vocabulary, but not in the graph's table: the run fails."""

PREDICT = f"predict.{VARIANT}.onnx"
MODEL = ModelSpec(input=TokenInput(vocabulary_size=9), head=LabelsHead(names=("first", "second")), max_positions=100)
CONTENT = BundleContent(
    plugin="sums",
    plugin_config={},
    model=MODEL,
    variants={VARIANT: Variant(device="cpu", precision="float32", predict=PREDICT, certificate=CERTIFICATE)},
    created_with={"statewise": "0.1.0"},
)
TABLE = np.array([[token, 10 * token] for token in range(8)], np.float32)
TABLE[NAN_TOKEN] = np.nan


def sums_model() -> ModelProto:
    """`output` `[row, 2]`: the sum of the real items' vectors; `echo` `[row, time]`: the items."""
    node, info = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("Gather", ["table", "items"], ["vectors"]),
            node("Shape", ["items"], ["time"], start=1, end=2),
            node("Squeeze", ["time"], ["width"]),
            node("Range", ["zero", "width", "one"], ["places"]),
            node("Unsqueeze", ["lengths", "axis_1"], ["ends"]),
            node("Less", ["places", "ends"], ["is_real"]),
            node("Unsqueeze", ["is_real", "axis_2"], ["mask"]),
            node("Where", ["mask", "vectors", "nothing"], ["kept"]),
            node("ReduceSum", ["kept", "axis_1"], ["output"], keepdims=0),
            node("Cast", ["items"], ["echo"], to=TensorProto.FLOAT),
        ],
        "predict",
        [info("items", TensorProto.INT64, ["row", "time"]), info("lengths", TensorProto.INT64, ["row"])],
        [info("output", TensorProto.FLOAT, ["row", 2]), info("echo", TensorProto.FLOAT, ["row", "time"])],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.array(0), "zero"),
            numpy_helper.from_array(np.array(1), "one"),
            numpy_helper.from_array(np.array([1]), "axis_1"),
            numpy_helper.from_array(np.array([2]), "axis_2"),
            numpy_helper.from_array(np.float32(0), "nothing"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def sums_runner() -> OneShotRunner:
    """The model in memory."""
    session = create_session(sums_model().SerializeToString(), intra_op_threads=1)
    return OneShotRunner(MODEL.input, MODEL.max_positions, session)


def write_sums(
    repository: Path, name: str = "sums", *, change: Callable[[ModelProto], object] = lambda _: None
) -> Path:
    """Write the model as a bundle, with a certificate that passed; `change` is applied to the graph."""
    model = sums_model()
    change(model)
    with new_bundle(repository, name, None) as draft:
        (draft.folder / PREDICT).write_bytes(model.SerializeToString())
        certificate = certify(draft.name, draft.version, draft.preview(CONTENT).variant_files(VARIANT))
        (draft.folder / CERTIFICATE).write_text(certificate.to_json(), encoding="utf-8")
        return draft.commit(CONTENT)
