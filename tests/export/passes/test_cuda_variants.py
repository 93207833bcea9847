"""The variants for CUDA, proven as far as a CPU can: the same graphs, run by the CPU provider."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec, ValueHead
from statewise.plugins import load_plugin
from statewise_export.certify.certify import certify
from statewise_export.certify.trial import Trial
from statewise_export.graphs.assembly import finish_model, step_graph
from statewise_export.graphs.variant import Tracer
from statewise_export.graphs.weights import write_weights
from statewise_export.passes.float16 import to_float16
from statewise_export.trace.trace import TracedStep, trace_step
from statewise_server.runtime.ort.providers import why_not
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.runner import Runner
from statewise_training.families.shared.standardized import Standardized
from statewise_training.reference.decoding import ReferenceDecoder
from tests.export.conftest import Statewise
from tests.models import checkpoint_of, draft_bundle, reference_decoder

FLOAT16, FLOAT32 = "cuda-float16", "cuda-float32"


def runner_of(name: str, variant: str) -> Runner:
    """A variant on the CPU, whatever device it is for."""
    return Runner.load(draft_bundle(name, variant), variant, max_rows=8, intra_op_threads=1, device="cpu")


def operators(name: str, variant: str) -> Counter[str]:
    """How often each operator stands in the step graph."""
    bundle = draft_bundle(name, variant)
    model = onnx.load(str(bundle.path(bundle.variant(variant).step)), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("gru-text", FLOAT16), ("gru-series", FLOAT16), ("transformer", FLOAT16), ("transformer", FLOAT32)],
)
def test_a_variant_for_cuda_computes_what_pytorch_computes(name: str, variant: str) -> None:
    """Every comparison of the certificate passes within the variant's tolerances where the CPU runs the graphs."""
    checkpoint = checkpoint_of(name)

    certificate = certify(Trial(draft_bundle(name, variant), variant, Tracer(checkpoint), device="cpu"))

    assert certificate.passed
    assert certificate.tolerances.batch == "within"
    # What is allowed is a few times what is found, not any number.
    assert certificate.outputs.max_absolute_error > certificate.tolerances.absolute / 1000


def test_half_precision_is_half_as_large() -> None:
    """Weights and state take half the bytes of float32's; the output that the sampler reads is float32 still."""
    sizes = []
    for variant in ("cpu-float32", FLOAT16):
        bundle = draft_bundle("transformer", variant)
        weights = sum(bundle.path(file).stat().st_size for file in bundle.variant(variant).data)
        sizes.append((weights, runner_of("transformer", variant).pool.nbytes))

    assert sizes[1][0] < 0.6 * sizes[0][0]
    assert sizes[1][1] < 0.6 * sizes[0][1]
    assert feed(runner_of("transformer", FLOAT16), 0, np.array([5, 7])).dtype == np.float32


def test_raw_units_stay_outside_half_precision() -> None:
    """A model of values near a million, with steps of one, gives PyTorch's values to the precision of its inside."""
    plugin = load_plugin("gru")
    config = plugin.config_class.model_validate({"features": 2, "hidden_size": 8})
    torch.manual_seed(2)
    module, spec = plugin.build(config), plugin.spec(config)
    raw = Standardized(module, ValueHead(features=2), [1e6, -2e5], [1.0, 30.0])
    traced = to_float16(trace_step(raw, spec))
    items = (np.array([1e6, -2e5]) + np.random.default_rng(0).standard_normal((1, 6, 2))).astype(np.float32)

    (expected,) = ReferenceDecoder(raw, spec).outputs(list(items))
    outputs = run(traced, spec, items)

    np.testing.assert_allclose(outputs[0], expected[-1], atol=0.1)
    assert len(set(expected[:, 0])) > 1


def test_norms_are_computed_in_float32() -> None:
    """From the square of a hidden vector, which may leave float16's range, to its inverse root, a norm is float32.

    Where a CPU has no float16 kernel ONNX Runtime computes in float32 anyway, so that the outputs alone prove nothing.
    """
    plugin = load_plugin("transformer")
    config = plugin.config_class.model_validate(
        {"vocabulary_size": 40, "hidden_size": 32, "num_layers": 1, "max_positions": 32, "norm": "rms_norm"}
    )
    torch.manual_seed(2)
    module, spec = plugin.build(config), plugin.spec(config)
    with torch.no_grad():
        module.embedding.weight *= 1e5
    items = np.random.default_rng(0).integers(0, 40, (1, 7))

    (expected,) = ReferenceDecoder(module, spec).outputs(list(items))
    traced = to_float16(trace_step(module, spec))
    outputs = run(traced, spec, items)

    inside = [node for node in traced.nodes if node.op_type in {"Pow", "ReduceMean", "Sqrt", "Reciprocal"}]
    assert len(inside) == 4 * 3
    assert traced.reals.issuperset(name for node in inside for name in node.output)
    assert module.embedding.weight.detach().abs().max() > 256
    np.testing.assert_allclose(outputs[0], expected[-1], atol=4e-3 * np.abs(expected).max())


def run(traced: TracedStep, spec: ModelSpec, items: np.ndarray) -> np.ndarray:
    """The outputs after the last of the items, by the runtime; state in float16."""
    spec = spec.with_state_dtype("float16")
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder) / "weights.data", traced.weights)
        onnx.save_model(finish_model(step_graph(traced, spec), weights), Path(folder) / "step.onnx")
        runner = Runner(spec, create_session(Path(folder) / "step.onnx", intra_op_threads=1), None, len(items))
    lengths = np.full(len(items), items.shape[1])
    uniforms = np.zeros((len(items), 1), np.float32)
    outputs = runner.step(
        slice(0, len(items)), items, lengths, uniforms, num_rows=len(items), with_outputs=True
    ).outputs
    assert outputs is not None
    return outputs


def step_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> TracedStep:
    reals = frozenset(name for node in nodes for name in node.output) | {"items"}
    return TracedStep(nodes, weights, "output", (), reals)


def test_a_weight_beyond_the_range_is_refused() -> None:
    """A weight that float16 cannot hold is named, rather than becoming infinite."""
    nodes = [helper.make_node("MatMul", ["items", "big"], ["output"])]

    with pytest.raises(ConfigError, match=r"weight 'big' holds 100000, beyond float16's 65504"):
        to_float16(step_of(nodes, {"big": np.full((2, 2), 1e5, np.float32)}))


def test_control_flow_inside_a_step_is_refused() -> None:
    """A step with an If in it cannot be walked node by node, and is refused by the operator's name."""
    branch = helper.make_graph([], "branch", [], [])
    nodes = [helper.make_node("If", ["flag"], ["output"], then_branch=branch, else_branch=branch)]

    with pytest.raises(ConfigError, match="operator If"):
        to_float16(step_of(nodes, {}))


def test_a_constant_read_on_both_sides_is_kept_in_both_types() -> None:
    """A weight that a product and a norm read is float16 for the one and float32 for the other; casts are shared."""
    nodes = [
        helper.make_node("MatMul", ["items", "weight"], ["product"]),
        helper.make_node("Pow", ["product", "weight"], ["power"]),
        helper.make_node("Sqrt", ["product"], ["root"]),
        helper.make_node("MatMul", ["power", "root"], ["output"]),
    ]

    lowered = to_float16(step_of(nodes, {"weight": np.ones((2, 2), np.float32)}))

    assert {name: array.dtype for name, array in lowered.weights.items()} == {
        "weight": np.float16,
        "weight.float32": np.float32,
    }
    # items, product (once for two readers), power and root into the last product, and the output.
    casts = [node for node in lowered.nodes if node.op_type == "Cast"]
    assert Counter(node.attribute[0].i for node in casts) == {TensorProto.FLOAT16: 3, TensorProto.FLOAT: 2}


def test_the_standard_lowering_has_no_contrib_operator() -> None:
    """cuda-float32's attention is ONNX's own; cuda-float16's is GroupQueryAttention, which has a kernel for it."""
    standard, contrib = (operators("transformer", variant) for variant in (FLOAT32, FLOAT16))

    assert (standard["TensorScatter"], standard["Attention"], standard["GroupQueryAttention"]) == (4, 2, 0)
    assert (contrib["TensorScatter"], contrib["Attention"], contrib["GroupQueryAttention"]) == (0, 0, 2)


def test_standard_attention_writes_its_caches_in_place() -> None:
    """Ragged rows are fed in one run; the caches that the pool holds are the ones that the graph has written."""
    runner = runner_of("transformer", FLOAT32)
    keys = runner.pool.caches["key.0"]
    address = keys.ctypes.data
    runs = count_runs(runner)
    lengths = np.array([3, 0, 5])

    runner.step(slice(0, 3), np.full((3, 5), 7), lengths, np.zeros((3, 1), np.float32), num_rows=3)

    assert runs == [3]
    assert runner.pool.caches["key.0"].ctypes.data == address
    assert [bool(keys[row, :, : lengths[row]].any()) for row in range(3)] == [True, False, True]
    assert not keys[2, :, 5:].any()


def test_rows_near_their_end_are_fed_without_padding() -> None:
    """Where the padding of a ragged batch would not fit behind a row, rows are run one by one, and none is damaged."""
    runner = runner_of("transformer", FLOAT32)
    limit = runner.spec.max_positions
    assert limit is not None
    prompt = np.random.default_rng(3).integers(0, 300, limit)
    feed(runner, 0, prompt[: limit - 2])
    feed(runner, 1, prompt[:10])
    runs = count_runs(runner)

    items = np.zeros((2, 8), np.int64)
    items[0, :2], items[1] = prompt[limit - 2 :], prompt[10:18]
    result = runner.step(
        slice(0, 2), items, np.array([2, 8]), np.zeros((2, 1), np.float32), num_rows=2, with_outputs=True
    )

    assert runs == [1, 1]
    expected = reference_decoder("transformer").outputs([prompt, prompt[:18]])
    assert result.outputs is not None
    for row in range(2):
        np.testing.assert_allclose(result.outputs[row], expected[row][-1], atol=1e-5)


@pytest.mark.parametrize("variant", [FLOAT16, FLOAT32])
def test_the_choice_of_a_transformers_item_is_a_graph_of_its_own(variant: str) -> None:
    """The sampler's control flow stands in `choose`, which reads the step's output and no weights."""
    bundle = draft_bundle("transformer", variant)
    files = bundle.variant(variant)
    assert files.choose is not None
    step, choose = (onnx.load(str(bundle.path(file)), load_external_data=False) for file in (files.step, files.choose))

    assert "If" not in {node.op_type for node in step.graph.node}
    assert "If" in {node.op_type for node in choose.graph.node}
    assert "step.output" in {value.name for value in choose.graph.input}
    assert not choose.graph.initializer


def test_a_recurrent_step_chooses_itself() -> None:
    """One run of its decode graph makes many items, so that nothing is to be captured."""
    files = draft_bundle("gru-text", FLOAT16).variant(FLOAT16)

    assert files.choose is None
    assert files.decode is not None


@pytest.mark.parametrize("variant", ["cpu-float32", FLOAT32])
def test_nan_of_one_request_does_not_reach_the_next(variant: str) -> None:
    """What a request that went wrong leaves in a row is not seen by who has the row, or its memory, afterwards."""
    runner = runner_of("transformer", variant)
    prompt = np.arange(20)
    expected = feed(runner, 0, prompt)
    for cache in runner.pool.caches.values():
        cache[:3] = np.nan
    runner.pool.num_filled[:3] = 40

    for row in (0, 2):
        runner.pool.clear_row(row)
    given_a_poisoned_row = feed(runner, 0, prompt)
    feed(runner, 2, prompt[:10])
    runner.copy_row(2, 1)  # as when row 1 is left to the last one
    moved = feed(runner, 1, prompt[10:])
    runner.pool.clear_row(2)
    feed(runner, 2, prompt[:10])
    for cache in runner.pool.caches.values():
        cache[0, :, 15:] = np.nan  # as of a prompt in row 0 whose second chunk went wrong
    runner.swap_rows(0, 2)
    swapped = feed(runner, 0, prompt[10:])

    np.testing.assert_array_equal(given_a_poisoned_row, expected)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_allclose(swapped, expected, atol=1e-5)


def feed(runner: Runner, row: int, prompt: np.ndarray) -> np.ndarray:
    """Feed a prompt to a row; the output after it."""
    length, uniforms = np.array([len(prompt)]), np.zeros((1, 1), np.float32)
    result = runner.step(slice(row, row + 1), prompt[None], length, uniforms, num_rows=8, with_outputs=True)
    assert result.outputs is not None
    return result.outputs[0]


def count_runs(runner: Runner) -> list[int]:
    """The number of rows of each run from now on."""
    runs: list[int] = []
    commit = runner.pool.commit

    def counted(rows: slice, *arguments: Any) -> None:
        runs.append(rows.stop - rows.start)
        commit(rows, *arguments)

    runner.pool.commit = counted  # type: ignore[method-assign]
    return runs


def test_a_variant_for_another_device_is_refused_early(statewise: Statewise, tmp_path: Path) -> None:
    """Without CUDA, exporting for it ends with exit code 2 and the reason, and leaves nothing behind."""
    if why_not("cuda") is None:
        pytest.skip("this machine has CUDA")
    checkpoint = checkpoint_of("gru-text")

    outcome = statewise("export", checkpoint.folder, "--to", tmp_path / "models", "--variant", FLOAT16)

    assert outcome.code == 2
    assert why_not("cuda") in " ".join(outcome.error.split())
    assert not (tmp_path / "models").exists()


def test_an_unknown_variant_is_refused(statewise: Statewise, tmp_path: Path) -> None:
    """A variant that does not exist is refused with those that do."""
    outcome = statewise(
        "export", checkpoint_of("gru-text").folder, "--to", tmp_path / "models", "--variant", "cpu-bf16"
    )

    assert outcome.code == 2
    assert "cuda-float16" in outcome.error
