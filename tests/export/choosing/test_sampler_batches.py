"""A row of the sampler's batch against its company, and the log-probabilities that come with a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY, SamplingParams, log_softmax
from statewise_export.choosing.blocks import BLOCK
from tests.export.choosing.sampler_rows import LARGEST, Row, run


def company(size: int = 1003) -> list[Row]:
    """Make a batch of every kind of row: greedy, unrestricted, restricted, flat, all equal, biased and penalized."""
    rng = np.random.default_rng(5)
    kinds = [
        (1.0, GREEDY),
        (1.0, SamplingParams()),
        (3.0, SamplingParams(temperature=0.7, top_k=40, top_p=0.9)),
        (0.01, SamplingParams(top_p=0.99)),
        (2.0, SamplingParams(logit_bias={3: 4.0, 1: -100.0})),
        (2.0, SamplingParams(repetition_penalty=1.3, presence_penalty=0.5)),
        (2.0, SamplingParams(temperature=0.0, frequency_penalty=1.0)),
        (0.5, SamplingParams(min_p=0.02)),
        (0.5, SamplingParams(top_k=300)),
        (3.0, SamplingParams(temperature=1.5, top_p=0.99999)),
        (0.5, SamplingParams(top_k=300, top_p=0.8, min_p=0.1)),
        (0.0, SamplingParams(top_k=700)),
        (0.0, SamplingParams(top_k=150, top_p=0.99)),
        (0.0, SamplingParams(top_p=0.6)),
    ]
    return [
        Row(
            rng.normal(0, width, size).astype(np.float32),
            params,
            rng.random(dtype=np.float32),
            rng.integers(0, size, 20).tolist(),
            rng.integers(0, size, 7).tolist(),
        )
        for width, params in kinds * 3
    ]


def parts(result: Sequence[np.ndarray], row: int) -> list[bytes]:
    return [values[row].tobytes() for values in result]


@pytest.mark.parametrize("size", [1003, 2000])
def test_a_row_does_not_depend_on_its_company(size: int) -> None:
    """Token and log-probabilities are bit for bit the same alone, in a pair and in every order of a full batch."""
    rows = company(size)
    together = run(rows, num_top=5)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    shuffled = run([rows[index] for index in order], num_top=5)

    for index, row in enumerate(rows):
        whole = parts(together, index)

        assert parts(run([row], num_top=5), 0) == whole
        assert parts(run([rows[index - 1], row], num_top=5), 1) == whole
        assert parts(shuffled, order.index(index)) == whole


def border_of(row: Row) -> tuple[np.float32, np.float32]:
    """Return two neighbouring uniform numbers that give the row, alone, two different tokens."""
    first = run([row])[0][0]
    # As integers, floats that are not negative lie in order, so that halving ends at neighbours.
    low, high = (int(np.float32(value).view(np.int32)) for value in (row.uniform, LARGEST))
    while high - low > 1:
        middle = (low + high) // 2
        here = run([replace(row, uniform=np.int32(middle).view(np.float32))])[0][0]
        low, high = (middle, high) if here == first else (low, middle)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


@pytest.mark.parametrize("size", [1003, 2000])
def test_a_draw_at_the_very_border_does_not_depend_on_its_company(size: int) -> None:
    """The last number that gives one token and the first that gives another do so in every batch: no bit differs."""
    rows = [row for row in company(size)[:14] if not row.params.is_greedy]
    at_borders = [
        [replace(row, uniform=number) for row, number in zip(rows, side, strict=True)]
        for side in zip(*map(border_of, rows), strict=True)
    ]
    below, above = ([int(run([row])[0][0]) for row in side] for side in at_borders)

    assert all(one != other for one, other in zip(below, above, strict=True))
    for batch, alone in zip(at_borders, (below, above), strict=True):
        for shift in range(len(batch)):
            assert run(batch[shift:] + batch[:shift])[0].tolist() == alone[shift:] + alone[:shift]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK, 1002])
def test_a_row_that_is_not_finite_gives_minus_one_alone(poison: float, place: int) -> None:
    """NaN or infinity anywhere in a row's logits makes its token -1; the rows beside it stay as they are."""
    rows = company()
    clean = run(rows, num_top=5)
    for bad in range(8):
        rows = company()
        rows[bad].logits[place] = poison
        result = run(rows, num_top=5)

        assert result[0][bad] == -1
        assert all(parts(result, row) == parts(clean, row) for row in range(len(rows)) if row != bad)


def test_log_probabilities_are_the_models_own() -> None:
    """Chosen and most probable tokens come with log-probabilities before temperature, bias and penalties."""
    rows = company()

    tokens, log_probabilities, top_tokens, top_log_probabilities = run(rows, num_top=4)
    own = [log_softmax(row.logits) for row in rows]

    assert log_probabilities == pytest.approx([own[row][token] for row, token in enumerate(tokens)], abs=1e-5)
    for row, values in enumerate(own):
        best = np.argsort(-values, kind="stable")[:4]

        assert top_tokens[row].tolist() == best.tolist()
        assert top_log_probabilities[row] == pytest.approx(values[best], abs=1e-5)


def test_no_more_tokens_are_reported_than_there_are() -> None:
    """Asking for five of a vocabulary of two gives both, instead of an error that would fail the whole batch."""
    rows = [Row(np.array([0.0, 1.0], np.float32), GREEDY, np.float32(0))]

    assert run(rows, num_top=5)[2].tolist() == [[1, 0]]


def test_log_probabilities_are_left_out_unless_asked_for() -> None:
    """num_top -1 gives zeros and no tokens, and the same choice."""
    rows = company()

    silent, asked = run(rows, num_top=-1), run(rows, num_top=2)

    assert (silent[0] == asked[0]).all()
    assert not silent[1].any()
    assert silent[2].shape == silent[3].shape == (len(rows), 0)
