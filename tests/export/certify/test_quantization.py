"""Quantized variants against the emulation in NumPy: other scales, other numbers and other nodes are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statewise_export.passes.int4 as int4
from statewise_export.builder import GraphBuilder
from statewise_export.certify.certify import CHECKS, run_checks
from statewise_export.certify.quantized.casts import FLOAT16_WEIGHTS
from statewise_export.certify.quantized.emulation import EMULATIONS
from statewise_export.certify.quantized.products import QUANTIZATION
from statewise_export.certify.tolerances import limits
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer
from statewise_export.passes import cells
from statewise_export.passes.int8 import Int8
from statewise_export.passes.variants import VARIANTS
from tests.export.conftest import Statewise
from tests.models import checkpoint_of, draft_of, make_checkpoint

WEIGHTS = "quantized: weights as the emulation rounds them"
PRODUCTS = "quantized: products as the emulation computes them"
NODES = "quantized: nodes around the products"
TWIN = "quantized: the float32 graphs against PyTorch"

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    """A small LSTM, whose cells are taken apart; traced once."""
    options = {"plugin": "lstm", "vocabulary_size": 61, "hidden_size": 256, "num_layers": 1}
    return Tracer(make_checkpoint("lstm", tmp_path_factory.mktemp("lstm") / "checkpoint", options=options))


def missed(tracer: Tracer, variant: str) -> set[str]:
    """Write the variant, and return the names of the checks of its numbers that it misses."""
    trial = Trial(draft_of(tracer.checkpoint, variant, tracer), variant, tracer, limits(VARIANTS[variant].precision))
    outcomes = run_checks(trial, [QUANTIZATION, FLOAT16_WEIGHTS])
    assert outcomes
    return {outcome.name for outcome in outcomes if not outcome.passed}


@pytest.mark.parametrize("variant", ["cpu-int8", "cpu-int4", "cuda-float16"])
def test_a_sound_variant_misses_nothing(variant: str, tracer: Tracer) -> None:
    """Numbers, scales, products, nodes and casts are what the emulation makes of the float32 weights."""
    assert missed(tracer, variant) == set()
    assert {QUANTIZATION, FLOAT16_WEIGHTS} <= set(CHECKS)


def encoded(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Plant:
    """Change the tensors that stand for a matrix in 8 bits."""
    real = Int8.encode

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Int8, "encode", lambda self, matrix: change(matrix, real(self, matrix)))

    return plant


def _by_scale(matrix: Any, scale: Any) -> dict[str, Any]:
    scales = np.broadcast_to(np.asarray(scale, np.float32), matrix.shape[1:])
    numbers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
    return {"int8": numbers, "scales": scales / np.float32(127)}


scales_off_by_2_percent = encoded(lambda _, tensors: tensors | {"scales": tensors["scales"] * np.float32(1.02)})
one_scale_per_tensor = encoded(lambda matrix, _: _by_scale(matrix, np.abs(matrix).max() / np.float32(127)))
five_bits = encoded(lambda _, tensors: tensors | {"int8": np.rint(tensors["int8"] / 8.0).astype(np.int8) * 8})
rounded_down = encoded(lambda matrix, t: t | {"int8": np.floor(matrix / (t["scales"] * 127)).astype(np.int8)})


def _one_other_number(_: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    numbers = tensors["int8"].copy()
    numbers[3, 5] += 1 if numbers[3, 5] < 0 else -1
    return tensors | {"int8": numbers}


one_other_number = encoded(_one_other_number)


def one_scale_for_all_rows(patch: pytest.MonkeyPatch) -> None:
    """Activations share the scale of the batch's largest number, as stock dynamic quantization has it."""

    def prepare(self: Int8, op: GraphBuilder, rows: str) -> tuple[str, ...]:
        largest = op.ReduceMax(op.Abs(rows), keepdims=0)
        shape = op.Concat(op.Slice(op.Shape(rows), op.constant([0]), op.constant([-1])), op.constant([1]), axis=0)
        scaled = op.Mul(rows, op.Div(op.constant(127, np.float32), largest))
        numbers = op.QuantizeLinear(scaled, op.constant(1.0, np.float32), op.constant(128, np.uint8))
        return numbers, op.Expand(largest, shape)

    patch.setattr(Int8, "prepare", prepare)


def seven_bits_of_activations(patch: pytest.MonkeyPatch) -> None:
    """Rows are rounded to half as many numbers, and scaled back."""
    real = Int8.prepare

    def prepare(self: Int8, op: GraphBuilder, rows: str) -> tuple[str, ...]:
        numbers, largest = real(self, op, rows)
        halved = op.Cast(
            op.Mul(op.Div(op.Cast(numbers, to=6), op.constant(2, np.int32)), op.constant(2, np.int32)), to=2
        )
        return halved, largest

    patch.setattr(Int8, "prepare", prepare)


def product_beside_its_scale(patch: pytest.MonkeyPatch) -> None:
    """The row's scale is forgotten."""
    real = Int8.multiply

    def multiply(self: Int8, op: GraphBuilder, prepared: Any, tensors: Any, shape: Any) -> str:
        numbers, largest = prepared
        return real(self, op, (numbers, op.Mul(largest, op.constant(1.001, np.float32))), tensors, shape)

    patch.setattr(Int8, "multiply", multiply)


def gates_swapped(patch: pytest.MonkeyPatch) -> None:
    """Cells that are taken apart exchange two gates."""
    real = cells._lstm

    def lstm(matrix: str, bias: str, activation: str) -> Any:
        cell = real(matrix, bias, activation)

        def swapped(op: GraphBuilder, projected: str, state: Any) -> Any:
            i, o, f, c = op.node("Split", [projected], 4, axis=1, num_outputs=4)
            return cell(op, op.Concat(o, i, f, c, axis=1), state)

        return swapped

    patch.setitem(cells._CELLS, "LSTM", lstm)


def another_function_beside_the_products(patch: pytest.MonkeyPatch) -> None:
    """Quantizing also changes an operator beside the products."""
    plan = VARIANTS["cpu-int8"]
    quantize = plan.quantization
    assert quantize is not None

    def more(traced: Any) -> Any:
        lowered = quantize(traced)
        for node in lowered.nodes:
            if node.op_type == "Tanh":
                node.op_type = "Softsign"
        for node in lowered.nodes:
            for attribute in node.attribute:
                for inner in attribute.g.node:
                    inner.op_type = "Softsign" if inner.op_type == "Tanh" else inner.op_type
        return lowered

    patch.setitem(VARIANTS, "cpu-int8", replace(plan, quantization=more))


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (scales_off_by_2_percent, WEIGHTS),
        (one_scale_per_tensor, WEIGHTS),
        (five_bits, WEIGHTS),
        (rounded_down, WEIGHTS),
        (one_other_number, WEIGHTS),
        (one_scale_for_all_rows, PRODUCTS),
        (seven_bits_of_activations, PRODUCTS),
        (product_beside_its_scale, PRODUCTS),
        (gates_swapped, TWIN),
        (another_function_beside_the_products, NODES),
    ],
)
def test_a_bug_in_8_bits_is_named(plant: Plant, check: str, tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the divergence from float32 stays."""
    plant(monkeypatch)

    assert missed(tracer, "cpu-int8") == {check}


def quantized_blocks(change: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Plant:
    """Change the numbers and scales of 4 bits."""
    real = int4.quantize_blocks

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(int4, "quantize_blocks", lambda blocks: change(blocks, *real(blocks)))

    return plant


def _plain(blocks: Any, *_: Any) -> tuple[Any, Any]:
    scales = np.maximum(np.abs(blocks).max(axis=-1), np.float32(1e-30)) / np.float32(7)
    return np.rint(blocks / scales[..., None]), scales


int4_scales_off = quantized_blocks(lambda _, numbers, scales: (numbers, scales * np.float32(1.02)))
int4_three_bits = quantized_blocks(lambda _, numbers, scales: (np.clip(np.rint(numbers / 2) * 2, -8, 6), scales))
int4_without_search = quantized_blocks(_plain)


def int4_one_scale(patch: pytest.MonkeyPatch) -> None:
    """All blocks of an output share a scale."""

    def shared(blocks: Any) -> tuple[Any, Any]:
        scales = np.abs(blocks).max(axis=(1, 2)) / np.float32(7)
        every = np.repeat(scales[:, None], blocks.shape[1], axis=1)
        return np.rint(blocks / every[..., None]), every

    patch.setattr(int4, "quantize_blocks", shared)


def int4_nibbles_swapped(patch: pytest.MonkeyPatch) -> None:
    """The two numbers of a byte change places."""
    real = int4.Int4.encode

    def encode(self: int4.Int4, matrix: Any) -> dict[str, Any]:
        tensors = real(self, matrix)
        return tensors | {"int4": (tensors["int4"] >> 4) | (tensors["int4"] << 4)}

    patch.setattr(int4.Int4, "encode", encode)


@pytest.mark.parametrize(
    "plant", [int4_scales_off, int4_three_bits, int4_without_search, int4_one_scale, int4_nibbles_swapped]
)
def test_a_bug_in_4_bits_is_named(plant: Plant, tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the divergence from float32 stays."""
    plant(monkeypatch)

    assert missed(tracer, "cpu-int4") == {WEIGHTS}


def test_a_truncated_cast_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in float16 that are cut off rather than rounded to the nearest are refused."""
    import statewise_export.passes.float16 as float16

    real = float16._narrow

    def truncated(array: Any, name: str) -> Any:
        narrowed = real(array, name)
        return np.where(np.abs(narrowed) > np.abs(array), np.nextafter(narrowed, np.float16(0)), narrowed)

    monkeypatch.setattr(float16, "_narrow", truncated)

    assert missed(Tracer(checkpoint_of("gru-text")), "cuda-float16") == {"float16: weights cast to the nearest"}


def test_export_refuses_scales_that_are_off(
    tmp_path: Path, tracer: Tracer, statewise: Statewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`statewise export` makes no bundle, exits with 1, and its message names the check."""
    scales_off_by_2_percent(monkeypatch)
    command = ("export", tracer.checkpoint.folder, "--to", tmp_path / "models", "--variant", "cpu-int8")
    outcome = statewise(*command)

    assert outcome.code == 1
    assert WEIGHTS in outcome.error
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_product_with_a_bias_is_taken_apart(tmp_path: Path) -> None:
    """A Gemm is a quantized product and an addition: both are checked."""
    options = {"plugin": "gru_encoder", "vocabulary_size": 61, "max_positions": 20, "hidden_size": 256}
    checkpoint = make_checkpoint("e", tmp_path / "e", options=options | {"num_layers": 1, "head": "embedding"})

    assert missed(Tracer(checkpoint), "cpu-int8") == set()


@pytest.mark.parametrize("precision", EMULATIONS)
def test_the_emulation_knows_no_pass(precision: str) -> None:
    """It is stated apart from the passes that it judges."""
    module = type(EMULATIONS[precision]).__module__
    source = (Path(__file__).parents[3] / "export" / Path(*module.split("."))).with_suffix(".py").read_text()

    assert "statewise_export.passes" not in source
