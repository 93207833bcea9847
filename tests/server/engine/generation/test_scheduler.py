"""Rows follow their sequences, in whatever order sequences come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statewise.bundles.reader import find_bundle, open_bundle
from statewise.rules.sampling import SamplingParams
from statewise_server.engine import EngineSettings, GenerationRequest, Stream
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.scheduler import Scheduler
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.queue_channel import QueueChannel
from statewise_server.runtime.steps.runner import Runner

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


def scheduler_of(runner: Runner, **settings: Any) -> Scheduler:
    """A scheduler with the memory that these settings give."""
    given = EngineSettings(**{"max_rows": MAX_ROWS, "state_memory": "1GB"} | settings)
    memory = StateMemory.of(given, runner.spec)
    return Scheduler(runner, given, memory, PrefixCache.of(given, memory, runner.spec))


def check(scheduler: Scheduler, runner: Runner) -> None:
    """Every sequence finds its own state and parameters in its row; decoding rows come first."""
    for row, running in enumerate(scheduler.running):
        number = running.request.sampling.seed
        assert running.row == row
        assert runner.sampler.rules["sampling.top_k"][row] == number
        assert all((buffer[row] == number).all() for buffer in runner.pool.current.values())
        assert (running.num_prompt_left == 0) == (row < scheduler.num_decoding)


@given(st.lists(st.tuples(st.sampled_from(["admit", "decode", "release"]), st.integers(0, 10)), max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_state_and_parameters_move_with_their_sequence(runner: Runner, steps: list[tuple[str, int]]) -> None:
    """Admission, promotion to decoding and release in any order leave each row with its own sequence."""
    scheduler = scheduler_of(runner)
    for number, (step, choice) in enumerate(steps, start=1):
        prefilling = scheduler.running[scheduler.num_decoding :]
        if step == "admit":
            scheduler.waiting.append(sequence(number))
            admitted = scheduler.admit()
            scheduler.prepare(admitted)
            for new in admitted:
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
    scheduler = scheduler_of(runner, prefill_chunk=8, token_budget=20)
    scheduler.waiting.extend(sequence(number, prompt_length=length) for number, length in enumerate((5, 30, 30, 30)))
    scheduler.prepare(scheduler.admit())

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
    scheduler = scheduler_of(runner, max_rows=2, decode_ms=10.0)
    scheduler.waiting.extend([sequence(1, max_tokens=4), sequence(2, presence_penalty=penalty)])
    scheduler.prepare(scheduler.admit())
    for running in list(scheduler.running):
        running.num_prefilled = 3
        scheduler.start_decoding(running)
    scheduler.waiting.extend(sequence(9 + number) for number in range(waiting))

    plan = scheduler.plan(step_seconds)

    assert plan is not None
    assert plan.num_decode_steps == expected


# The tests' Transformer has 256 bytes of cache per position, 16 of `position` twice.
ONE_LONG_ROW = 400 * 256 + 16


@pytest.fixture
def bounded(repository: Path) -> Runner:
    """A runner of a model with positions, whose pool is small at first."""
    bundle = open_bundle(find_bundle(repository, "transformer"), check_hashes=False)
    return Runner.load(bundle, "cpu-float32", max_rows=MAX_ROWS, capacity=64)


def lengths(scheduler: Scheduler) -> list[int]:
    return [running.num_positions for running in scheduler.running]


def admit(scheduler: Scheduler) -> None:
    scheduler.prepare(scheduler.admit())


def test_rows_are_given_by_positions_first_come_first_served(bounded: Runner) -> None:
    """A long request waits until its row fits beside the others, and who came after it waits behind it."""
    scheduler = scheduler_of(bounded, max_rows=4, state_memory=ONE_LONG_ROW)
    scheduler.waiting.extend(sequence(1, max_tokens=count) for count in (50, 40, 380, 20))
    admit(scheduler)
    assert lengths(scheduler) == [53, 43]
    assert (bounded.pool.num_rows, bounded.pool.capacity) == (4, 64)

    scheduler.release(scheduler.running[0])
    admit(scheduler)
    assert lengths(scheduler) == [43]

    scheduler.release(scheduler.running[0])
    admit(scheduler)
    assert lengths(scheduler) == [383]
    assert (bounded.pool.num_rows, bounded.pool.capacity) == (1, 400)


def test_the_pool_shrinks_where_that_lets_the_next_one_in(bounded: Runner) -> None:
    """Room for long requests is given up when the last of them has left and a row is wanted, not before."""
    scheduler = scheduler_of(bounded, max_rows=4, state_memory=2 * ONE_LONG_ROW)
    scheduler.waiting.extend(sequence(1, max_tokens=count) for count in (20, 380))
    admit(scheduler)
    assert (bounded.pool.num_rows, bounded.pool.capacity) == (2, 400)

    scheduler.release(scheduler.running[1])
    scheduler.waiting.append(sequence(1, max_tokens=20))
    admit(scheduler)
    assert bounded.pool.capacity == 400
    scheduler.waiting.append(sequence(1, max_tokens=20))
    admit(scheduler)

    assert lengths(scheduler) == [23, 23, 23]
    assert (bounded.pool.num_rows, bounded.pool.capacity) == (4, 64)


@given(st.lists(st.tuples(st.integers(1, 397), st.integers(0, 4)), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_request_gets_its_turn_within_the_budget(bounded: Runner, arrivals: list[tuple[int, int]]) -> None:
    """Whatever the lengths and whoever leaves, the pool holds all positions, stays in its budget, and none is stuck."""
    budget = int(2.5 * ONE_LONG_ROW)
    scheduler = scheduler_of(bounded, max_rows=4, state_memory=budget)
    for number, (max_tokens, num_leaving) in enumerate(arrivals):
        scheduler.waiting.append(sequence(number, max_tokens=max_tokens))
        admit(scheduler)
        assert max(lengths(scheduler)) <= bounded.pool.capacity
        assert len(scheduler.running) <= bounded.pool.num_rows
        assert bounded.pool.nbytes <= budget
        for _ in range(min(num_leaving, len(scheduler.running))):
            scheduler.release(scheduler.running[number % len(scheduler.running)])
    while scheduler.waiting:
        if scheduler.running:
            scheduler.release(scheduler.running[0])
        admit(scheduler)
        assert scheduler.running
