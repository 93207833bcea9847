"""Runs the sampler's part of a graph on rows of given logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.builder import GraphBuilder
from export.graphs import IR_VERSION
from export.sampler import INPUTS, add_sampler
from export.trace import OPSET
from server.runtime.adjustment import LogitAdjuster
from server.runtime.onnx import onnxruntime
from server.runtime.sampler_table import SamplerTable
from statewise.model_spec import CategoricalHead
from statewise.sampling import FloatArray, SamplingParams, adjust_logits, choose

LARGEST = np.nextafter(np.float32(1), np.float32(0))
"""The largest uniform number that there is."""


@dataclass
class Row:
    """One row of a batch: its logits, and how its token is chosen."""

    logits: FloatArray
    params: SamplingParams
    uniform: np.float32
    prompt: Sequence[int] = field(default_factory=tuple)
    output: Sequence[int] = field(default_factory=tuple)


@cache
def session(vocabulary_size: int) -> onnxruntime.InferenceSession:
    """Build a graph of nothing but the sampler, its logits an input."""
    op = GraphBuilder()
    sampled = add_sampler(op, "logits", "uniform", vocabulary_size)
    inputs: list[tuple[str, int, list[Any]]] = [
        ("logits", TensorProto.FLOAT, ["row", vocabulary_size]),
        ("uniform", TensorProto.FLOAT, ["row"]),
        (INPUTS.parameters, TensorProto.FLOAT, ["row", 6]),
        (INPUTS.top_k, TensorProto.INT64, ["row"]),
        (INPUTS.adjust_ids, TensorProto.INT64, ["row", "entry"]),
        (INPUTS.adjust_values, TensorProto.FLOAT, ["row", "entry", 3]),
        (INPUTS.num_top, TensorProto.INT64, []),
    ]
    types = (TensorProto.INT64, TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)
    ranks = (["row"], ["row"], ["row", "top"], ["row", "top"])
    graph = helper.make_graph(
        op.nodes,
        "sampler",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in zip(sampled, types, ranks, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(rows: Sequence[Row], num_top: int = 0) -> list[np.ndarray]:
    """Run the graph on a batch: tokens, their log-probabilities, the most probable tokens and theirs."""
    table = SamplerTable(len(rows), CategoricalHead(vocabulary_size=len(rows[0].logits)))
    for index, row in enumerate(rows):
        table.set(index, row.params)
        adjuster = LogitAdjuster(row.params, row.prompt)
        adjuster.append(row.output)
        table.adjustments[index] = adjuster.adjustment()
    ids, values = table.adjustment_arrays(slice(0, len(rows)))
    feeds = {
        "logits": np.stack([row.logits for row in rows]),
        "uniform": np.array([row.uniform for row in rows], np.float32),
        INPUTS.parameters: table.parameters,
        INPUTS.top_k: table.top_k,
        INPUTS.adjust_ids: ids,
        INPUTS.adjust_values: values,
        INPUTS.num_top: np.array(num_top),
    }
    return list(session(len(rows[0].logits)).run(None, feeds))


def expected(row: Row) -> int:
    """Return the token that the rules choose."""
    return choose(adjust_logits(row.logits, row.params, row.prompt, row.output), row.params, row.uniform)
