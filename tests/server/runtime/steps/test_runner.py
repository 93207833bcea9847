"""The runner's ways to feed the same items to the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statewise.bundles.reader import find_bundle, open_bundle
from statewise.rules.sampling import SamplingParams
from statewise_server.runtime.steps.runner import Runner, StepResult

MAX_ROWS = 6


@pytest.fixture(scope="module")
def runners(repository: Path) -> list[Runner]:
    """Two runners of one Transformer."""
    bundle = open_bundle(find_bundle(repository, "transformer"), check_hashes=False)
    return [Runner.load(bundle, "cpu-float32", max_rows=MAX_ROWS, intra_op_threads=1) for _ in range(2)]


def fill(runner: Runner, lengths: list[int]) -> None:
    """Feed every row a prompt of its own, and give it sampling parameters of its own."""
    rng = np.random.default_rng(0)
    for row, length in enumerate(lengths):
        runner.pool.clear_row(row)
        runner.sampler.set(row, SamplingParams(seed=row, temperature=0.5 * row, top_k=row), num_top=2)
        if length:
            items = rng.integers(2, 300, (1, length))
            runner.step(slice(row, row + 1), items, np.array([length]), np.zeros((1, 1), "f"), num_rows=len(lengths))


def rows_of(result: StepResult, rows: slice) -> list[np.ndarray]:
    """Everything that a step gave the rows."""
    assert result.log_probabilities is not None
    assert result.top_log_probabilities is not None
    return [part[:, rows] for part in (result.items, result.log_probabilities, result.top_log_probabilities)]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(0, 70), st.integers(1, 70), st.integers(0, 2))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mixed_run_gives_what_two_runs_give(
    runners: list[Runner], decoding: list[int], num_prefilled: int, chunk_length: int, num_others: int
) -> None:
    """Results and state are equal bit for bit, and the rows behind keep theirs."""
    mixed, separate = runners
    num_decoding, num_rows = len(decoding), len(decoding) + 1 + num_others
    rng = np.random.default_rng(1)
    items, chunk = rng.integers(2, 300, (num_decoding, 1)), rng.integers(2, 300, (1, chunk_length))
    uniforms = rng.random((num_decoding + 1, 1), np.float32)
    for runner in runners:
        fill(runner, [*decoding, num_prefilled, *([5] * num_others)])

    together = mixed.mixed(num_decoding, items, chunk, uniforms, num_rows=num_rows)
    first = separate.decode(num_decoding, items, uniforms[:-1], num_rows=num_rows)
    row = slice(num_decoding, num_decoding + 1)
    last = separate.step(row, chunk, np.array([chunk_length]), uniforms[-1:], num_rows=num_rows)

    for whole, of_rows, of_chunk in zip(
        rows_of(together, slice(None)), rows_of(first, slice(None)), rows_of(last, slice(None)), strict=True
    ):
        np.testing.assert_array_equal(whole, np.concatenate([of_rows, of_chunk], axis=1))
    for row_number in range(num_rows):
        one, other = (runner.pool.save_row(row_number) for runner in runners)
        assert one.num_filled == other.num_filled
        for name, tensor in one.tensors.items():
            np.testing.assert_array_equal(tensor, other.tensors[name])
