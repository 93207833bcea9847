"""Rows follow their sequences, in whatever order sequences come and go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import EngineSettings, GenerationRequest, Stream
from server.engine.queue_channel import QueueChannel
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.runtime.runner import Runner
from statewise.bundle import find_bundle, open_bundle
from statewise.sampling import SamplingParams

MAX_ROWS = 5


@pytest.fixture(scope="module")
def runner(repository: Path) -> Runner:
    """A real runner; only its rows are used here."""
    bundle = open_bundle(find_bundle(repository, "rnn-1"), check_hashes=False)
    return Runner.load(bundle, "cpu-float32", max_rows=MAX_ROWS)


def sequence(number: int, prompt_length: int = 3, max_tokens: int = 50, **sampling: float) -> Sequence:
    """A waiting sequence whose seed is its number."""
    request = GenerationRequest(
        np.full(prompt_length, 4), SamplingParams(seed=number, top_k=number, **sampling), max_tokens
    )
    return Sequence(Stream(request, QueueChannel()), None)


def check(scheduler: Scheduler, runner: Runner) -> None:
    """Every sequence finds its own state and parameters in its row; decoding rows come first."""
    for row, running in enumerate(scheduler.running):
        number = running.request.sampling.seed
        assert running.row == row
        assert runner.sampler.top_k[row] == number
        assert all((buffer[row] == number).all() for buffer in runner.pool.current.values())
        assert (running.num_prompt_left == 0) == (row < scheduler.num_decoding)


@given(st.lists(st.tuples(st.sampled_from(["admit", "decode", "release"]), st.integers(0, 10)), max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_state_and_parameters_move_with_their_sequence(runner: Runner, steps: list[tuple[str, int]]) -> None:
    """Admission, promotion to decoding and release in any order leave each row with its own sequence."""
    scheduler = Scheduler(runner, EngineSettings(max_rows=MAX_ROWS))
    for number, (step, choice) in enumerate(steps, start=1):
        prefilling = scheduler.running[scheduler.num_decoding :]
        if step == "admit":
            scheduler.waiting.append(sequence(number))
            num_before = len(scheduler.running)
            scheduler.admit()
            for new in scheduler.running[num_before:]:
                for buffer in runner.pool.current.values():
                    assert (buffer[new.row] == 0).all()
                    buffer[new.row] = new.request.sampling.seed
        elif step == "decode" and prefilling:
            chosen = prefilling[choice % len(prefilling)]
            chosen.num_prefilled = len(chosen.request.prompt)
            scheduler.start_decoding(chosen)
        elif step == "release" and scheduler.running:
            gone = scheduler.running[choice % len(scheduler.running)]
            scheduler.release(gone)
            scheduler.release(gone)
            assert gone not in scheduler.running
        check(scheduler, runner)


def test_prompts_are_cut_to_chunks_within_the_budget(runner: Runner) -> None:
    """Chunks are whole, all of them fit the budget, and the first come are served first."""
    scheduler = Scheduler(runner, EngineSettings(max_rows=MAX_ROWS, prefill_chunk=8, token_budget=20))
    scheduler.waiting.extend(sequence(number, prompt_length=length) for number, length in enumerate((5, 30, 30, 30)))
    scheduler.admit()

    plan = scheduler.plan(0.0)

    assert plan is not None
    assert plan.chunk_lengths == (5, 8)
    assert plan.num_decoding == 0


@pytest.mark.parametrize(
    ("step_seconds", "penalty", "waiting", "expected"),
    [(0.001, 0.0, 0, 10), (0.02, 0.0, 0, 1), (1e-6, 0.0, 0, 32), (0.001, 0.5, 0, 1), (0.001, 0.0, 1, 4)],
)
def test_the_number_of_steps_follows_the_time_of_a_step(
    runner: Runner, step_seconds: float, penalty: float, waiting: int, expected: int
) -> None:
    """Short steps are run many at a time; penalties and sequences that wait for a row cut the number."""
    scheduler = Scheduler(runner, EngineSettings(max_rows=2, decode_ms=10.0))
    scheduler.waiting.extend([sequence(1, max_tokens=4), sequence(2, presence_penalty=penalty)])
    scheduler.admit()
    for running in list(scheduler.running):
        running.num_prefilled = 3
        scheduler.start_decoding(running)
    scheduler.waiting.extend(sequence(9 + number) for number in range(waiting))

    plan = scheduler.plan(step_seconds)

    assert plan is not None
    assert plan.num_decode_steps == expected
