"""The mixture's rules as a graph, against the same rules in NumPy."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from statewise.model.graph_io import choice_inputs, choice_results
from statewise.model.sampling_inputs import NOISE
from statewise.model.spec import MixtureHead
from statewise.rules import mixture
from statewise.rules.sampling import SamplingParams
from statewise_export.builder import GraphBuilder, tensor_info
from statewise_export.choosing.choice import MixtureChoice
from statewise_export.graphs.assembly import IR_VERSION
from statewise_export.trace.trace import OPSET
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.steps.sampler_table import SamplerTable

NUM_ROWS = 37
TEMPERATURES = (1.0, 0.0, 0.5, 2.0, 1e-30, 100.0)

HEADS = [
    MixtureHead(features=1, components=1),
    MixtureHead(features=1, components=5),
    MixtureHead(features=3, components=4),
    MixtureHead(features=1, components=2, covariance="full"),
    MixtureHead(features=4, components=3, covariance="full"),
]

Array = NDArray[Any]


@cache
def session(head: MixtureHead) -> onnxruntime.InferenceSession:
    """Build a graph of nothing but the choice, the head's output an input."""
    op = GraphBuilder()
    noise = op.Squeeze(NOISE, op.constant([1]))
    results = [op.Identity(value) for value in MixtureChoice(head).add(op, "output", noise)]
    inputs = [tensor_info("output", "float32", ["row", head.output_size])]
    inputs += [tensor_info(*tensor) for tensor in choice_inputs(head, "row")]
    outputs = [
        tensor_info(name, tensor.dtype, tensor.shape)
        for name, tensor in zip(results, choice_results(head, ["row"]), strict=True)
    ]
    graph = helper.make_graph(op.nodes, "choice", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(head: MixtureHead, outputs: Array, rows: slice, num_top: int = 0) -> list[Array]:
    """Draw for some of the rows, row i having seed i and one temperature after another."""
    table = SamplerTable(len(outputs), head)
    for row in range(len(outputs)):
        params = SamplingParams(seed=row, temperature=TEMPERATURES[row % len(TEMPERATURES)])
        table.set(row, params, num_top)
    noise = table.noise(rows, [3] * len(outputs[rows]), 1)
    inputs = {name: np.asarray(value) for name, value in table.inputs(rows, noise).items()}
    result: list[Array] = session(head).run(None, {"output": outputs[rows], **inputs})
    return result


def random_outputs(head: MixtureHead) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((NUM_ROWS, head.output_size)).astype(np.float32)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_graph_draws_by_the_rules(head: MixtureHead) -> None:
    """Vectors of every temperature in one batch, and their log-densities, are NumPy's within rounding."""
    outputs = random_outputs(head)

    items, densities = run(head, outputs, slice(0, NUM_ROWS))

    for row, output in enumerate(outputs):
        noise = mixture.noise_of(head, row).take(3, 1)[0]
        expected = mixture.choose(output, head, TEMPERATURES[row % len(TEMPERATURES)], noise)
        assert items[row] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert densities == pytest.approx(mixture.log_density(outputs, items, head), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_row_does_not_depend_on_its_company(head: MixtureHead) -> None:
    """Alone, or at any place of a batch of another size, a row gives the same bits."""
    outputs = random_outputs(head)
    together = run(head, outputs, slice(0, NUM_ROWS))

    for start in range(NUM_ROWS):
        for width in (1, 2, 7):
            part = run(head, outputs, slice(start, min(start + width, NUM_ROWS)))
            assert all(p[0].tobytes() == t[start].tobytes() for p, t in zip(part, together, strict=True))


def test_a_row_that_is_not_finite_gives_nothing_and_harms_no_other() -> None:
    """NaN or infinity anywhere in its output makes its vector NaN; its neighbours stay as they were."""
    head = HEADS[4]
    outputs = random_outputs(head)
    clean, _ = run(head, outputs, slice(0, NUM_ROWS))
    outputs[3, 0], outputs[5, -1], outputs[8, 7] = np.nan, np.inf, -np.inf

    items, _ = run(head, outputs, slice(0, NUM_ROWS))

    bad = [3, 5, 8]
    assert np.isnan(items[bad]).all()
    assert np.delete(items, bad, axis=0).tobytes() == np.delete(clean, bad, axis=0).tobytes()


def test_densities_that_nobody_wants_are_left_out() -> None:
    """They are zeros then, and the vectors are the same."""
    head = HEADS[2]
    outputs = random_outputs(head)

    items, densities = run(head, outputs, slice(0, NUM_ROWS), num_top=-1)

    assert items.tobytes() == run(head, outputs, slice(0, NUM_ROWS))[0].tobytes()
    assert not densities.any()
