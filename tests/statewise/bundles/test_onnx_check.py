from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from statewise.bundles.onnx_check import check_graphs
from statewise.bundles.reader import open_bundle
from statewise.errors import BundleError
from tests.small_bundles import DATA, STEP, VARIANT, external_weight, write_bundle

Change = Callable[[onnx.ModelProto], object]


def check(repository: Path, change: Change | None = None) -> None:
    """Check a bundle whose hashes are right and whose graph has been changed."""
    check_graphs(open_bundle(write_bundle(repository, change=change)), VARIANT)


def refused(repository: Path, change: Change, reason: str) -> None:
    with pytest.raises(BundleError, match=f"^{STEP}: .*{reason}"):
        check(repository, change)


def test_a_sound_graph_passes(tmp_path: Path) -> None:
    """ONNX's operators, com.microsoft's, the file's own functions and external weights are all allowed."""

    def add_function(model: onnx.ModelProto) -> None:
        identity = helper.make_node("Identity", ["x"], ["y"])
        model.functions.append(
            helper.make_function("local", "Same", ["x"], ["y"], [identity], [helper.make_opsetid("", 21)])
        )
        model.graph.node.append(helper.make_node("Same", ["added"], ["same"], domain="local"))
        model.graph.node.append(helper.make_node("Gelu", ["added"], ["gelu"], domain="com.microsoft"))

    check(tmp_path, add_function)


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "a/../b",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "manifest.json",
        f"./{DATA}",
        "\\\\host\\x",
    ],
)
def test_weights_outside_the_data_files_are_refused(tmp_path: Path, location: str) -> None:
    """External weights may lie in the variant's data files only, and be named plainly."""
    refused(tmp_path, lambda model: _replace_weight(model, external_weight(location)), "none of the data files")


def _replace_weight(model: onnx.ModelProto, weight: TensorProto) -> None:
    del model.graph.initializer[1:]
    model.graph.initializer.append(weight)


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        ("4", "8", "ends beyond"),
        ("0", "4", "its length is 4 bytes"),
        ("-8", "8", "no size in bytes"),
        ("99999999999999999999999", "8", "no size in bytes"),
        ("0", "18446744073709551616", "no size in bytes"),
        ("9223372036854775807", "8", "ends beyond"),
        ("²", "8", "no size in bytes"),
    ],
)
def test_weights_beyond_their_file_are_refused(tmp_path: Path, offset: str, length: str, reason: str) -> None:
    """Offset and length must be sizes that lie inside the data file."""
    weight = external_weight(offset=offset, length=length)
    refused(tmp_path, lambda model: _replace_weight(model, weight), reason)


@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ([2**40], "declares"),
        ([-2], "negative"),
        ([-1, -2], "negative"),
        ([2**62, 4], "declares"),
        ([0], "declares"),
    ],
)
@pytest.mark.parametrize("is_external", [True, False])
def test_declared_sizes_must_be_held(tmp_path: Path, dims: list[int], reason: str, is_external: bool) -> None:
    """A huge, negative or overflowing shape is refused wherever the data lie."""
    weight = external_weight() if is_external else numpy_helper.from_array(np.ones(2, np.float32), "weight")
    del weight.dims[:]
    weight.dims.extend(dims)

    refused(tmp_path, lambda model: _replace_weight(model, weight), reason)


@pytest.mark.parametrize(
    "weight",
    [
        helper.make_tensor("weight", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("weight", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("weight", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("weight", TensorProto.STRING, [1], [b"x"]),
        helper.make_tensor("weight", TensorProto.COMPLEX64, [2], [1j, 2j]),
        numpy_helper.from_array(np.array(1.0, np.float64), "weight"),
        numpy_helper.from_array(np.zeros((0, 5), np.int8), "weight"),
    ],
    ids=lambda weight: TensorProto.DataType.Name(weight.data_type),
)
def test_every_way_to_hold_numbers_is_understood(tmp_path: Path, weight: TensorProto) -> None:
    """A right tensor passes in any type; one number more is refused."""
    check(tmp_path, lambda model: _replace_weight(model, weight))
    longer = TensorProto()
    longer.CopyFrom(weight)
    longer.dims.append(7)

    if 0 not in weight.dims:
        refused(tmp_path, lambda model: _replace_weight(model, longer), "not what it holds")


@pytest.mark.parametrize("data_type", [0, 999, -1])
def test_an_unknown_data_type_is_refused(tmp_path: Path, data_type: int) -> None:
    """A weight of a type that ONNX does not know is refused."""
    weight = TensorProto(name="weight", data_type=data_type, dims=[2], raw_data=b"12345678")

    refused(tmp_path, lambda model: _replace_weight(model, weight), "no known data type")


def _bad_node() -> onnx.NodeProto:
    return helper.make_node("Run", ["added"], ["ran"], domain="evil.ops")


def _in_graph(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    model.graph.node.append(node)


def _in_subgraph(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    inner = helper.make_graph([node], "inner", [], [])
    middle = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=inner)], "middle", [], [])
    model.graph.node.append(helper.make_node("Loop", [], ["y"], body=middle))


def _in_function(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    model.functions.append(helper.make_function("local", "F", [], [], [node], []))


def _in_training_graph(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    model.training_info.add().algorithm.node.append(node)


PLACES = [_in_graph, _in_subgraph, _in_function, _in_training_graph]


@pytest.mark.parametrize("place", PLACES)
def test_operators_of_other_domains_are_refused(
    tmp_path: Path, place: Callable[[onnx.ModelProto, onnx.NodeProto], None]
) -> None:
    """A custom operator is refused wherever it hides."""
    refused(tmp_path, lambda model: place(model, _bad_node()), "domain 'evil.ops'")


@pytest.mark.parametrize("place", PLACES)
def test_bad_weights_in_attributes_are_refused(
    tmp_path: Path, place: Callable[[onnx.ModelProto, onnx.NodeProto], None]
) -> None:
    """A constant that points outside the bundle is refused wherever it hides."""
    constant = helper.make_node("Constant", [], ["c"], value=external_weight("../x"))

    refused(tmp_path, lambda model: place(model, constant), "none of the data files")


def test_operators_that_load_files_are_refused(tmp_path: Path) -> None:
    """EPContext, which loads compiled code, is refused although its domain is allowed."""
    node = helper.make_node("EPContext", [], ["x"], domain="com.microsoft", ep_cache_context="../x")

    refused(tmp_path, lambda model: model.graph.node.append(node), "EPContext")


def test_functions_may_not_redefine_onnx(tmp_path: Path) -> None:
    """A function that takes the name of one of ONNX's own operators is refused."""
    function = helper.make_function("", "Add", ["x"], ["x"], [], [])

    refused(tmp_path, lambda model: model.functions.append(function), "redefines operator Add")


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    """A sparse tensor, which can declare far more than it holds, is refused."""
    refused(tmp_path, lambda model: model.graph.sparse_initializer.add(dims=[2**50]), "sparse")


def test_negative_declared_shapes_are_refused(tmp_path: Path) -> None:
    """An input with a dimension below zero is refused."""
    info = helper.make_tensor_value_info("more", TensorProto.FLOAT, [-5])

    refused(tmp_path, lambda model: model.graph.input.append(info), "dimension of size -5")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """Bytes that are no ONNX file at all are refused, although their hash is right."""
    folder = write_bundle(tmp_path, before_commit=lambda draft: (draft.folder / STEP).write_bytes(b"\xff" * 100))

    with pytest.raises(BundleError, match=f"^{STEP}: not an ONNX model"):
        check_graphs(open_bundle(folder), VARIANT)


def _rename_state(model: onnx.ModelProto) -> None:
    model.graph.input[2].name = "state.total"


def _add_rule(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("sampling.newer_rule", TensorProto.FLOAT, ["row"]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_add_rule, "its inputs are not .*; unknown: sampling.newer_rule; export the model again"),
        (lambda model: model.graph.input.pop(1), "its inputs are not .*; missing: lengths; export"),
        (lambda model: model.graph.output.pop(0), "its outputs are not .*; missing: next_items; export"),
        (_rename_state, "its inputs are not .*missing: state.sum; unknown: state.total; export the model again"),
        (lambda model: model.graph.output.pop(), "its outputs are not .*missing: new_state.sum"),
    ],
)
def test_inputs_and_outputs_must_be_the_runtimes(tmp_path: Path, change: Change, reason: str) -> None:
    """A graph has all inputs and outputs that the runtime binds for the manifest's model, and no other inputs."""
    refused(tmp_path, change, reason)
