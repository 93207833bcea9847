"""Steps in two graphs, and which runs are captured: all on the CPU, which runs the graphs but captures none of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from statewise.errors import BundleError
from statewise_server.runtime.ort.cuda_session import CUDA_CALLS
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.steps import captured, step_graph
from statewise_server.runtime.steps.captured import RUNS_BEFORE_CAPTURE, GraphIds
from statewise_server.runtime.steps.step_graph import load_step
from tests.server.captures import Recorder, assert_same, decode, runner_of, start


def test_fixed_places_change_no_bit() -> None:
    """Prompts and items through buffers in a device's memory give what they give through arrays; so do captured runs.

    Rows come and go, and the pool is resized in between.
    """
    recorder = Recorder()
    runners = [runner_of(), runner_of(recorder, DeviceMemory("cpu"))]

    made = []
    for runner in runners:
        results = []
        start(runner, 3)
        for num_rows in (3, 2, 3):
            results += decode(runner, num_rows, 2 * RUNS_BEFORE_CAPTURE + 3, num_in_use=3)
        runner.pool.resize(6, 128, 3)
        results += decode(runner, 3, 2 * RUNS_BEFORE_CAPTURE + 3)
        made.append(results)

    assert len(recorder.captures) > 3
    assert_same(made[1], made[0])


def test_each_number_of_rows_and_each_buffer_has_a_graph_of_its_own() -> None:
    """Prompts are never captured; the same rows over the same buffer are captured once, and then launched."""
    recorder = Recorder()
    runner = runner_of(recorder)
    start(runner, 3)
    after_prompts = list(recorder.runs)

    decode(runner, 3, 2 * RUNS_BEFORE_CAPTURE + 6)
    of_three = recorder.runs[1:]
    decode(runner, 2, 2 * RUNS_BEFORE_CAPTURE + 2)

    assert after_prompts == [(-1, False)]
    assert of_three[: 2 * RUNS_BEFORE_CAPTURE] == [(-1, False)] * 2 * RUNS_BEFORE_CAPTURE
    assert of_three[2 * RUNS_BEFORE_CAPTURE :] == [(1, True), (2, True), (1, False), (2, False), (1, False), (2, False)]
    assert recorder.captures == [1, 2, 3, 4]


def test_ids_are_not_used_again_after_a_resize() -> None:
    """The pool's addresses are others after a resize: what was captured before is never launched again."""
    recorder = Recorder()
    runner = runner_of(recorder)
    start(runner, 2)
    decode(runner, 2, 2 * RUNS_BEFORE_CAPTURE + 4)
    before = set(recorder.graphs)
    recorder.runs.clear()

    runner.pool.resize(4, 128, 2)
    decode(runner, 2, 2 * RUNS_BEFORE_CAPTURE + 4)

    assert before & set(recorder.graphs) == {-1}
    assert recorder.captures == [3, 4]


def test_a_capture_that_fails_costs_nothing_but_speed(caplog: pytest.LogCaptureFixture) -> None:
    """The run is made without; nothing is captured any more, and the log says once why."""
    recorder = Recorder(failure=RuntimeError("CUDA failure 900: operation not permitted when stream is capturing"))
    runner, plain = runner_of(recorder), runner_of()
    for one in (runner, plain):
        start(one, 2)

    with caplog.at_level(logging.WARNING):
        results = decode(runner, 2, 2 * RUNS_BEFORE_CAPTURE + 4)

    assert_same(results, decode(plain, 2, 2 * RUNS_BEFORE_CAPTURE + 4))
    assert set(recorder.graphs) == {-1}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no more CUDA graphs, as one could not be captured"
    ]


def test_a_capture_does_not_wait_for_others() -> None:
    """While another thread calls CUDA runs are made without; the next one that may be captured is."""
    recorder = Recorder()
    runner = runner_of(recorder)
    start(runner, 1)

    with CUDA_CALLS.shared():
        decode(runner, 1, 2 * RUNS_BEFORE_CAPTURE + 4)
        while_busy = list(recorder.captures)
    decode(runner, 1, 2)

    assert (while_busy, recorder.captures) == ([], [1, 2])


def test_warming_up_captures_a_graph() -> None:
    """One is captured and launched while the model is loaded, which leaves no trace in its rows."""
    recorder = Recorder()
    runner, plain = runner_of(recorder), runner_of()

    runner.warm_up()
    warm_up_runs = recorder.runs[-2:]
    start(runner, 2)
    start(plain, 2)

    assert warm_up_runs == [(1, True), (1, False)]
    assert_same(decode(runner, 2, 3), decode(plain, 2, 3))


def test_a_step_may_be_repeated() -> None:
    """Capturing computes the step several times: what it reads must not be what it has written."""
    once, thrice = runner_of(), runner_of()
    commit = thrice.pool.commit
    for runner in (once, thrice):
        start(runner, 3)
    thrice.pool.commit = lambda *_: None  # type: ignore[method-assign]
    for _ in range(2):
        decode(thrice, 3, 1)
    thrice.pool.commit = commit  # type: ignore[method-assign]

    assert_same(decode(thrice, 3, 1), decode(once, 3, 1))
    for row in range(3):
        saved, expected = thrice.pool.save_row(row), once.pool.save_row(row)
        assert all(saved.tensors[name].tobytes() == part.tobytes() for name, part in expected.tensors.items())


def test_no_more_than_so_many_graphs_are_captured() -> None:
    """Behind the limit runs are not captured; what has been captured is used on."""
    ids = GraphIds(2)
    captured_ids = []
    for key in ("a", "b", "c"):
        for _ in range(RUNS_BEFORE_CAPTURE + 1):
            candidate = ids.candidate(key)
        captured_ids.append(candidate)
        if candidate is not None:
            ids.add(key)

    assert captured_ids == [1, 2, None]
    assert [ids.captured(key) for key in ("a", "b", "c")] == [1, 2, -1]


def test_what_cannot_be_captured_is_loaded_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ONNX Runtime refuses a graph for capture, the graph is loaded as any other, and the log says why."""
    asked = []

    def create(path: Path, *, device: str, intra_op_threads: int, captures: bool = False) -> str:
        asked.append(captures)
        if captures:
            raise BundleError("step.onnx: ONNX Runtime cannot load it: all nodes have not been partitioned")
        return "session"

    for module in (captured, step_graph):
        monkeypatch.setattr(module, "create_session", create)
    with caplog.at_level(logging.WARNING):
        loaded = load_step(Path("step.onnx"), device="cuda", intra_op_threads=1, captures=True)

    assert (loaded, asked) == (("session", False), [True, False])
    assert "have not been partitioned" in caplog.text
