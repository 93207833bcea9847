"""Variants in float16: every weight is the float32 one, cast to the nearest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import lowered_graphs

Array = NDArray[Any]


def _run(trial: Trial) -> list[Outcome]:
    graphs, weights = lowered_graphs(trial.plan.in_float32(), trial.tracer)
    exact = _contents(weights.values())
    cast = _contents(array.astype(np.float16) for array in weights.values() if array.dtype == np.float32)
    wrong, count = [], 0
    for graph in graphs:
        model = onnx.load(str(trial.bundle.path(getattr(trial.variant, graph))))
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            count += 1
            if _content(array) not in (cast if array.dtype == np.float16 else exact):
                wrong.append(f"{graph}: {tensor.name} is no weight of the float32 graph cast to {array.dtype}")
    figure = wrong[0] if wrong else f"{count} tensors in {len(graphs)} graphs"
    return [Outcome("float16: weights cast to the nearest", not wrong, figure)]


def _contents(arrays: Iterable[Array]) -> set[tuple[Any, ...]]:
    return {_content(array) for array in arrays}


def _content(array: Array) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, array.tobytes()


FLOAT16_WEIGHTS = Check("float16 weights", lambda trial: trial.variant.precision == "float16", _run)
