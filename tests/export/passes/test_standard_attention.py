"""Attention in ONNX's standard operators, which a GPU has in float32."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx

from statewise_server.runtime.steps.runner import Runner
from tests.export.passes.test_cuda_variants import FLOAT16, FLOAT32, feed, runner_of
from tests.models import draft_bundle, reference_decoder


def operators(name: str, variant: str) -> Counter[str]:
    """How often each operator stands in the step graph."""
    bundle = draft_bundle(name, variant)
    model = onnx.load(str(bundle.path(bundle.variant(variant).step)), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


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


def count_runs(runner: Runner) -> list[int]:
    """The number of rows of each run from now on."""
    runs: list[int] = []
    commit = runner.pool.commit

    def counted(rows: slice, *arguments: Any) -> None:
        runs.append(rows.stop - rows.start)
        commit(rows, *arguments)

    runner.pool.commit = counted  # type: ignore[method-assign]
    return runs
