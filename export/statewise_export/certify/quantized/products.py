"""Variants in int8 and int4: exactly the float32 graphs, with products that round as NumPy says they do.

Together the four outcomes leave nothing to a limit: the float32 graphs compute what PyTorch does, the quantized ones
have the same nodes around the products, their weights are the float32 ones rounded, and each product, run by itself,
gives what the emulation gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from statewise.bundles.reader import Bundle
from statewise.rules.sampling import GREEDY
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.figures import describe_outputs
from statewise_export.certify.inputs import DATA_SEED
from statewise_export.certify.quantized.emulation import EMULATIONS, Emulation
from statewise_export.certify.quantized.nodes import Comparison, Product, compare_nodes
from statewise_export.certify.steps.outputs import OutputErrors
from statewise_export.certify.tolerances import against_pytorch
from statewise_export.certify.trial import Trial
from statewise_export.graphs.assembly import IR_VERSION
from statewise_export.graphs.variant import lowered_graphs, write_variant
from statewise_export.trace.trace import OPSET
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.runner import Runner

Array = NDArray[Any]

NUM_ROWS = 6
ROUNDING = 2e-5
"""Largest error, as a part of a row's largest product: whole numbers are summed exactly, scales in float32."""
TWIN_CHUNK = 16


@dataclass
class _Findings:
    """Products looked at, and what is wrong with them."""

    num_products: int = 0
    weights: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    largest: float = 0.0
    seen: set[tuple[Any, ...]] = field(default_factory=set)


def _run(trial: Trial) -> list[Outcome]:
    graphs, weights = lowered_graphs(trial.plan.in_float32(), trial.tracer)
    emulation, found, differences = EMULATIONS[trial.variant.precision], _Findings(), []
    for graph, plain in graphs.items():
        compared = _compare_graph(trial, graph, plain, weights)
        differences += [f"{graph}: {text}" for text in compared.differences]
        for product in compared.products:
            _check_product(found, emulation, product)
    count = f"{found.num_products} products in {len(graphs)} graphs"
    if not found.num_products:
        differences.append("no product was found")
    return [
        _outcome("quantized: nodes around the products", differences, count),
        _outcome("quantized: weights as the emulation rounds them", found.weights, f"{len(found.seen)} matrices"),
        _outcome(
            "quantized: products as the emulation computes them",
            found.results,
            f"max error {found.largest:.2e} of a row's largest (limit {ROUNDING:g}); {len(found.seen)} matrices",
        ),
        *([_twin(trial)] if trial.spec.generates else []),
    ]


def _outcome(name: str, problems: Sequence[str], figure: str) -> Outcome:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Outcome(name, not problems, problems[0] + more if problems else figure)


def _compare_graph(trial: Trial, graph: str, plain: onnx.GraphProto, weights: dict[str, Array]) -> Comparison:
    file = getattr(trial.variant, graph)
    if file is None:
        return Comparison(differences=["the variant does not have it"])
    return compare_nodes(onnx.load(str(trial.bundle.path(file))).graph, plain, weights)


def _check_product(found: _Findings, emulation: Emulation, product: Product) -> None:
    """Check a matrix once, however many graphs multiply with it by the same nodes."""
    found.num_products += 1
    kinds = tuple((node.op_type, *sorted(map(_text, node.attribute))) for node in product.nodes)
    key = (*product.tensors, product.bias is not None, kinds)
    if key in found.seen:
        return
    found.seen.add(key)
    name = ", ".join(product.tensors) or product.output
    problem = emulation.problem(product.matrix, product.encoding)
    if problem is not None:
        found.weights.append(f"{name}: {problem}")
        return
    rows = _rows(product.matrix.shape[0])
    expected = emulation.products(product.matrix, product.encoding, rows)
    if product.bias is not None:
        expected = [each + product.tensors[product.bias] for each in expected]
    error = min(_error(_multiply(product, rows), each) for each in expected)
    found.largest = float(np.maximum(found.largest, error))
    if not error <= ROUNDING:
        found.results.append(f"{name}: off by {error:.2e} of a row's largest product")


def _text(attribute: onnx.AttributeProto) -> bytes:
    return attribute.SerializeToString(deterministic=True)


def _rows(size: int) -> Array:
    """Usual rows, one of zeros, and one a thousand times as large."""
    rows = np.random.default_rng(DATA_SEED).standard_normal((NUM_ROWS, size)).astype(np.float32)
    rows[1], rows[2] = 0.0, 1000 * rows[2]
    return rows


def _error(actual: Array, expected: Array) -> float:
    """Largest error, as a part of its row's largest product."""
    if actual.shape != expected.shape:
        return float("inf")
    size = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return float((np.abs(actual - expected) / size).max())


def _multiply(product: Product, rows: Array) -> Array:
    """Run a product's nodes by themselves, in the server's ONNX Runtime."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        product.nodes,
        "product",
        [info(product.rows, TensorProto.FLOAT, rows.shape)],
        [info(product.output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in product.tensors.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), path)
        session = create_session(path, device="cpu", intra_op_threads=1)
        (result,) = session.run(None, {product.rows: rows})
    return np.asarray(result)


def _twin(trial: Trial) -> Outcome:
    """The float32 graphs that the quantized ones were made of, against PyTorch."""
    plan = trial.plan.in_float32()
    with TemporaryDirectory() as folder:
        variant = write_variant(trial.variant_name, plan, trial.tracer, Path(folder))
        manifest = trial.bundle.manifest
        bundle = Bundle(Path(folder), manifest.model_copy(update={"variants": {trial.variant_name: variant}}))
        decoder = RuntimeDecoder(Runner.load(bundle, trial.variant_name, max_rows=len(trial.prompts)))
        errors = OutputErrors(against_pytorch(trial.spec, variant), trial.units)
        prompts = trial.prompts
        expected = trial.pytorch.outputs(prompts.items, prompts.sources)
        for chunk in (None, TWIN_CHUNK):
            outputs = decoder.prefill(prompts.items, [GREEDY] * len(prompts), chunk, prompts.sources).outputs
            rows = zip(outputs, expected, strict=True)
            errors.add([(output, row[at]) for own, row in rows for at, output in own.items()], prompts, chunk)
    passed = all(case.passed for case in errors.cases)
    return Outcome(
        "quantized: the float32 graphs against PyTorch",
        passed,
        describe_outputs(errors.totals.agreement, errors.tolerances),
    )


QUANTIZATION = Check("quantized products", lambda trial: trial.variant.precision in EMULATIONS, _run)
