"""Recurrent operators taken apart: the same numbers, ragged rows and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import statewise_export.passes.cells
from statewise.model.spec import ModelSpec
from statewise.plugins import load_plugin
from statewise_export.graphs.assembly import decode_graph, finish_model, predict_graph, step_graph
from statewise_export.graphs.weights import write_weights
from statewise_export.passes.cells import expand_cells
from statewise_export.passes.spare_rows import spare_rows
from statewise_export.trace.trace import TracedStep, trace_prediction, trace_step
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.runner import Runner

SIZE = 20
KINDS: dict[str, dict[str, Any]] = {"rnn": {}, "rnn-relu": {"nonlinearity": "relu"}, "gru": {}, "lstm": {}}


def runner(traced: TracedStep, spec: ModelSpec, folder: Path) -> Runner:
    folder.mkdir()
    weights = write_weights(folder / "weights.data", traced.weights)
    for name, build in (("step", step_graph), ("decode", decode_graph)):
        onnx.save_model(finish_model(build(traced, spec), weights), folder / f"{name}.onnx")
    sessions = [create_session(folder / f"{name}.onnx", intra_op_threads=1) for name in ("step", "decode")]
    return Runner(spec, sessions[0], sessions[1], 4)


@pytest.mark.parametrize("kind", KINDS)
def test_taken_apart_it_computes_what_the_operator_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One item or many, rows of different lengths and none: outputs and states agree, and a row without items keeps
    its state as it is.
    """
    monkeypatch.setattr(statewise_export.passes.cells, "MIN_NUMBERS", 1)
    plugin = load_plugin(kind.partition("-")[0])
    config = plugin.config_class.model_validate({"vocabulary_size": 31, "hidden_size": SIZE, **KINDS[kind]})
    spec = plugin.spec(config)
    torch.manual_seed(0)
    traced = trace_step(plugin.build(config).eval(), spec)
    apart = expand_cells(traced)
    runners = runner(spare_rows(traced), spec, tmp_path / "whole"), runner(apart, spec, tmp_path / "apart")
    rng = np.random.default_rng(0)
    state = {s.name: rng.standard_normal((4, SIZE)).astype(np.float32) for s in spec.state}

    assert not {"RNN", "GRU", "LSTM"} & {node.op_type for node in apart.nodes}
    for time in (1, 6):
        lengths = np.array([time, 1, 0, max(1, time - 2)])
        items = rng.integers(0, 31, (4, time))
        results = []
        for one in runners:
            for name, array in state.items():
                one.pool.buffers(name)[0][:] = array
            step = one.step(slice(0, 4), items, lengths, np.zeros((4, 1), np.float32), num_rows=4, with_outputs=True)
            states = [one.pool.buffers(name)[0][:4].copy() for name in state]
            decoded = one.decode(4, items[:, :1], np.full((4, 5), 0.3, np.float32), num_rows=4)
            results.append(([step.outputs, *states], states, decoded.items))
        (whole, _, tokens), (parts, states, own_tokens) = results
        for expected, actual in zip(whole, parts, strict=True):
            np.testing.assert_allclose(actual[lengths > 0], expected[lengths > 0], atol=2e-6)
        for array, kept in zip(states, state.values(), strict=True):
            np.testing.assert_array_equal(array[2], kept[2])
        np.testing.assert_array_equal(own_tokens, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_two_directions_are_taken_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer that reads both ways, the second direction begins at each row's own last item."""
    monkeypatch.setattr(statewise_export.passes.cells, "MIN_NUMBERS", 1)
    family = f"{kind.partition('-')[0]}_encoder"
    plugin = load_plugin(family)
    settings = {"features": 3, "hidden_size": SIZE, "num_layers": 2, "labels": ("a", "b"), "labels_per": "item"}
    config = plugin.config_class.model_validate(settings | KINDS[kind])
    torch.manual_seed(0)
    traced = trace_prediction(plugin.build(config).eval(), plugin.spec(config))
    apart = expand_cells(traced)
    items = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    lengths = np.array([6, 1, 3, 5])
    outputs = []
    for step in (traced, apart):
        weights = [onnx.numpy_helper.from_array(array, name) for name, array in step.weights.items()]
        model = finish_model(predict_graph(step, plugin.spec(config)), weights)
        session = create_session(model.SerializeToString(), intra_op_threads=1)
        outputs.append(session.run(["output"], {"items": items, "lengths": lengths})[0])

    assert not {"RNN", "GRU", "LSTM"} & {node.op_type for node in apart.nodes}
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(outputs[1][row, :length], outputs[0][row, :length], atol=2e-6)
