"""Runs the sampler's part of a graph on rows of given logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx

from benchmarks.sampler import sampler_model
from statewise.model.spec import CategoricalHead
from statewise.rules.sampling import FloatArray, SamplingParams, adjust_logits, choose
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.sampler_table import SamplerTable

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
    """Load a graph of nothing but the sampler."""
    model = sampler_model(vocabulary_size)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(rows: Sequence[Row], num_top: int = 0) -> list[np.ndarray]:
    """Run the graph on a batch: tokens, their log-probabilities, the most probable tokens and theirs."""
    table = SamplerTable(len(rows), CategoricalHead(vocabulary_size=len(rows[0].logits)))
    for index, row in enumerate(rows):
        table.set(index, row.params, num_top)
        adjuster = LogitAdjuster(row.params, row.prompt)
        adjuster.append(row.output)
        table.adjustments[index] = adjuster.adjustment()
    uniforms = np.array([[row.uniform] for row in rows], np.float32)
    feeds = {"logits": np.stack([row.logits for row in rows]), **table.inputs(slice(0, len(rows)), uniforms)}
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    return list(session(len(rows[0].logits)).run(None, arrays))


def expected(row: Row) -> int:
    """Return the token that the rules choose."""
    return choose(adjust_logits(row.logits, row.params, row.prompt, row.output), row.params, row.uniform)
