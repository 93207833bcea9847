"""Decode steps captured as CUDA graphs, against the same steps as they are computed otherwise."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY
from statewise_server.engine import GenerationRequest
from statewise_server.engine.queue_channel import run_all
from statewise_server.runtime.steps.captured import RUNS_BEFORE_CAPTURE, SplitStep
from statewise_server.runtime.steps.runner import Runner
from tests.cuda.drafts import VARIANTS, draft
from tests.cuda.test_engine import engine_of, requests
from tests.server.captures import assert_same, decode, start

pytestmark = pytest.mark.cuda

NAME = "transformer"
ENOUGH = 2 * RUNS_BEFORE_CAPTURE + 6
"""Steps of one number of rows after which both buffers have a graph that has been launched."""


def runner_of(variant: str, *, captures: bool) -> Runner:
    return Runner.load(draft(NAME, variant), variant, max_rows=4, capacity=128, captures=captures)


def num_graphs(runner: Runner) -> int:
    assert isinstance(runner._step, SplitStep)
    return runner._step.num_graphs


@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_steps_change_no_bit(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rows come and go, prompts are read in between, and the pool moves: every step gives what it gives uncaptured."""
    runners = [runner_of(variant, captures=captures) for captures in (True, False)]

    made = []
    with caplog.at_level(logging.WARNING):
        for runner in runners:
            results = []
            start(runner, 3)
            for num_rows in (3, 2, 3, 1, 3):
                results += decode(runner, num_rows, ENOUGH, num_in_use=3)
            runner.pool.resize(6, 256, 3)
            for num_rows in (3, 2):
                results += decode(runner, num_rows, ENOUGH, num_in_use=3)
            made.append(results)

    assert [record.getMessage() for record in caplog.records] == []
    assert (num_graphs(runners[0]), num_graphs(runners[1])) == (7, 0)
    assert_same(made[0], made[1])
    for row in range(3):
        captured, plain = (runner.pool.save_row(row) for runner in runners)
        assert all(captured.tensors[name].tobytes() == part.tobytes() for name, part in plain.tensors.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_outlives_what_runs_beside_it(variant: str) -> None:
    """Prompts that take the arena's memory between two launches change nothing in the graph's."""
    runners = [runner_of(variant, captures=captures) for captures in (True, False)]
    prompt = np.random.default_rng(1).integers(2, 300, (1, 40))

    made = []
    for runner in runners:
        results = []
        start(runner, 2)
        for _ in range(ENOUGH):
            runner.pool.clear_row(2)
            noise = runner.sampler.no_noise(1, 1)
            runner.step(slice(2, 3), prompt, np.array([prompt.shape[1]]), noise, num_rows=3)
            results += decode(runner, 2, 1, num_in_use=3)
        made.append(results)

    assert num_graphs(runners[0]) == 1
    assert_same(made[0], made[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_engines_capture_beside_each_other(variant: str) -> None:
    """While one engine captures another one allocates: no request of either fails, and both capture."""
    with engine_of(NAME, variant, max_rows=4) as one, engine_of(NAME, variant, max_rows=8) as other:
        asked = requests(24, one.manifest.model.input.vocabulary_size)
        with ThreadPoolExecutor(2) as threads:
            outputs = list(threads.map(lambda engine: run_all(engine, asked), (one, other)))
        steady = run_all(one, [GenerationRequest(np.array([5, 6, 7]), GREEDY, 100)])

        assert [output.error for of_engine in (*outputs, steady) for output in of_engine] == [None] * 49
        assert min(num_graphs(one._runner), num_graphs(other._runner)) > 2
