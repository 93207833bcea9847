"""Small real bundles, made with onnx.helper, for tests that need files rather than a model: a running sum."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statewise.bundles.certificate import Case, Certificate, CheckResult
from statewise.bundles.figures import OutputAgreement, Tolerances
from statewise.bundles.manifest import Variant
from statewise.bundles.writer import BundleContent, BundleDraft, new_bundle
from statewise.model.spec import ModelSpec, RealInput, StateSpec, ValueHead

VARIANT = "cpu-float32"
STEP = f"step.{VARIANT}.onnx"
DATA = f"step.{VARIANT}.onnx.data"
CERTIFICATE = f"certificate.{VARIANT}.json"
FEATURES = 2

MODEL = ModelSpec(
    input=RealInput(features=FEATURES),
    head=ValueHead(features=FEATURES),
    state=(StateSpec(name="sum", shape=("row", FEATURES)),),
)
CONTENT = BundleContent(
    plugin="sum",
    plugin_config={"features": FEATURES},
    model=MODEL,
    variants={VARIANT: Variant(device="cpu", precision="float32", step=STEP, data=(DATA,), certificate=CERTIFICATE)},
    created_with={"statewise": "0.1.0"},
)


def sum_model() -> onnx.ModelProto:
    """Build the step `sum += items.sum(time) * weight`; its weight lies in DATA."""
    float_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["items", "time_axis"], ["added"], keepdims=0),
            helper.make_node("Mul", ["added", "weight"], ["weighted"]),
            helper.make_node("Add", ["state.sum", "weighted"], ["new_state.sum"]),
            helper.make_node("Identity", ["new_state.sum"], ["next_items"]),
        ],
        "step",
        [
            float_info("items", TensorProto.FLOAT, ["row", "time", FEATURES]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["row"]),
            float_info("state.sum", TensorProto.FLOAT, ["row", FEATURES]),
        ],
        [
            float_info("next_items", TensorProto.FLOAT, ["row", FEATURES]),
            float_info("new_state.sum", TensorProto.FLOAT, ["row", FEATURES]),
        ],
        [numpy_helper.from_array(np.array([1]), "time_axis"), external_weight()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def external_weight(location: str = DATA, offset: str = "0", length: str | None = None) -> onnx.TensorProto:
    """Describe a weight of two float32 numbers that lies in another file."""
    weight = TensorProto(
        name="weight", data_type=TensorProto.FLOAT, dims=[FEATURES], data_location=TensorProto.EXTERNAL
    )
    entries = {"location": location, "offset": offset, "length": length or str(4 * FEATURES)}
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return weight


def fill(draft: BundleDraft, model: onnx.ModelProto | None = None) -> None:
    """Put the files of a bundle, all but the manifest, into the draft."""
    (draft.folder / STEP).write_bytes((model or sum_model()).SerializeToString())
    (draft.folder / DATA).write_bytes(np.ones(FEATURES, np.float32).tobytes())
    files = draft.preview(CONTENT).variant_files(VARIANT)
    certificate = certify(draft.name, draft.version, files)
    (draft.folder / CERTIFICATE).write_text(certificate.to_json(), encoding="utf-8")


def certify(name: str, version: int, files: dict[str, str]) -> Certificate:
    """Make a certificate that passed."""
    return Certificate(
        model=name,
        version=version,
        variant=VARIANT,
        passed=True,
        tolerances=Tolerances(absolute=1e-5, relative=1e-5),
        outputs=OutputAgreement(max_absolute_error=0.0, max_relative_error=0.0, positions_compared=1),
        batch_invariant=True,
        chunk_invariant=True,
        checks=(CheckResult(name="outputs", passed=True, figure="equal"),),
        cases=(Case(prompt_length=1, batch_size=1, max_absolute_error=0.0, passed=True),),
        seeds=(0,),
        libraries={},
        files=files,
        created=datetime.now(UTC),
    )


def write_bundle(
    repository: Path,
    name: str = "sum",
    version: int | None = None,
    *,
    change: Callable[[onnx.ModelProto], object] | None = None,
    before_commit: Callable[[BundleDraft], object] | None = None,
    content: BundleContent = CONTENT,
) -> Path:
    """Write a bundle; `change` is applied to the graph, `before_commit` to the draft with all its files."""
    model = sum_model()
    if change:
        change(model)
    with new_bundle(repository, name, version) as draft:
        fill(draft, model)
        if before_commit:
            before_commit(draft)
        return draft.commit(content)
