"""The sampler in the graph against the rules in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY, HEAD, SamplingParams, adjust_logits, choose
from tests.export.choosing.sampler_rows import LARGEST, Row, expected, run

SIZES = (2, 61, HEAD, 300, 400, 5000, 8000)
"""Below, at and above HEAD and BLOCK; of 400 and 8,000 tokens blocks need no padding."""
ROUNDING = np.float32(1e-6)
"""NumPy and ONNX Runtime round exp() differently, so a draw this close to a border may fall on either side."""


def borders(row: Row) -> set[int]:
    """Return the tokens that the rules give a rounding error away from the uniform number."""
    adjusted = adjust_logits(row.logits, row.params, row.prompt, row.output)
    near = (np.clip(row.uniform + shift, np.float32(0), LARGEST) for shift in (-ROUNDING, ROUNDING))
    return {choose(adjusted, row.params, uniform) for uniform in near}


def assert_agree(rows: Sequence[Row], max_at_a_border: int = 0) -> None:
    """Assert that every row's token is the rules' one; so many may differ, if a border is a rounding error away."""
    tokens = run(rows)[0].tolist()
    differing = [(row, token) for row, token in zip(rows, tokens, strict=True) if token != expected(row)]

    assert all(token in borders(row) for row, token in differing), [(r.params, t, expected(r)) for r, t in differing]
    assert len(differing) <= max_at_a_border


def random_params(rng: np.random.Generator, size: int) -> SamplingParams:
    """Draw parameters of every kind: each rule is on in some rows and off in others."""

    def maybe(value: float, otherwise: float) -> float:
        return value if rng.random() < 0.4 else otherwise

    bias = {int(token): float(rng.normal(0, 3)) for token in rng.integers(0, size, 4)}
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 0.8, 1.0, 2.5]),
        top_k=int(maybe(rng.choice([1, 2, 40, HEAD, HEAD + 1, 10_000]), 0)),
        top_p=maybe(rng.uniform(0.01, 0.999), 1.0),
        min_p=maybe(rng.uniform(0.001, 0.5), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=bias if rng.random() < 0.3 else {},
    )


def random_row(rng: np.random.Generator, size: int) -> Row:
    return Row(
        rng.normal(0, rng.choice([0.01, 1, 5]), size).astype(np.float32),
        random_params(rng, size),
        rng.random(dtype=np.float32),
        rng.integers(0, size, 9).tolist(),
        rng.integers(0, size, rng.integers(0, 12)).tolist(),
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_follows_the_rules(size: int) -> None:
    """Random logits and parameters of every kind give the tokens that the rules give, in ragged batches."""
    rng = np.random.default_rng(size)
    rows = [random_row(rng, size) for _ in range(400)]

    for start in range(0, len(rows), 50):
        assert_agree(rows[start : start + 50], max_at_a_border=1)


@pytest.mark.parametrize("size", SIZES)
def test_flat_distributions_need_every_token(size: int) -> None:
    """A nearly flat distribution with top_p 0.99, or a small min_p, keeps more tokens than are looked at first."""
    rng = np.random.default_rng(size + 1)
    params = [SamplingParams(top_p=0.99), SamplingParams(min_p=0.1), SamplingParams(top_k=size, top_p=0.95)]
    rows = [
        Row(rng.normal(0, 0.01, size).astype(np.float32), params[index % 3], np.float32(uniform))
        for index, uniform in enumerate(np.linspace(0, LARGEST, 30))
    ]

    assert_agree(rows, max_at_a_border=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("uniform", [np.float32(0), np.float32(0.3774), LARGEST])
def test_extreme_logits(size: int, uniform: np.float32) -> None:
    """Huge logits, ties everywhere, and tokens that are all but impossible are drawn as the rules draw them."""
    rng = np.random.default_rng(size + 2)
    logits = [
        np.full(size, 1e4, np.float32),
        np.full(size, -1e4, np.float32),
        rng.choice([-1e4, 1e4], size).astype(np.float32),
        rng.integers(0, 2, size).astype(np.float32),
        np.zeros(size, np.float32),
    ]
    params = [
        GREEDY,
        SamplingParams(),
        SamplingParams(temperature=0.01, top_k=3),
        SamplingParams(temperature=100.0, top_k=200),
        SamplingParams(min_p=1.0),
        SamplingParams(top_p=1e-9),
        SamplingParams(logit_bias=dict.fromkeys(range(size // 2), -100.0)),
    ]

    assert_agree([Row(values, each, uniform) for values in logits for each in params])


@pytest.mark.parametrize("size", SIZES)
def test_logits_of_minus_infinity_through_the_bias(size: int) -> None:
    """A token banned by a bias of minus infinity is never drawn, nor is it in the way of the others."""
    rng = np.random.default_rng(size + 3)
    banned = dict.fromkeys(range(size - 1), -np.inf)
    rows = [
        Row(rng.normal(0, 1, size).astype(np.float32), params, uniform)
        for params in (
            SamplingParams(logit_bias=banned),
            SamplingParams(logit_bias=banned, top_k=size),
            SamplingParams(logit_bias=banned, top_p=0.99),
            SamplingParams(logit_bias=banned, temperature=0.0),
        )
        for uniform in (np.float32(0), np.float32(0.3), LARGEST)
    ]

    assert set(run(rows)[0].tolist()) == {size - 1}
    assert_agree(rows)


@pytest.mark.parametrize("make", [lambda size: np.zeros(size), lambda size: np.arange(size) % 7])
def test_ties_go_to_the_lowest_id(make: Callable[[int], np.ndarray]) -> None:
    """Among equal logits, greedy takes the lowest id and top-k keeps the lowest ones."""
    logits = make(300).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    rows = [Row(logits, SamplingParams(top_k=3), np.float32(u)) for u in (0.0, 0.4, 0.9)]

    tokens = run([Row(logits, GREEDY, np.float32(0)), *rows])[0]

    assert tokens.tolist() == [order[0], *order[:3].tolist()]


@pytest.mark.parametrize("size", [300, 512, 5000])
def test_the_largest_number_stays_inside_the_vocabulary(size: int) -> None:
    """The largest uniform number draws a token that exists, however the sums of the blocks were rounded."""
    rng = np.random.default_rng(size + 4)
    rows = [
        Row(rng.normal(0, 1, size).astype(np.float32), SamplingParams(temperature=t), LARGEST)
        for t in (1.0, 5.0, 50.0)
        for _ in range(100)
    ]

    tokens = run(rows)[0]

    assert tokens.max() < size
    assert max(map(expected, rows)) < size


@pytest.mark.parametrize("size", [2, HEAD])
def test_top_p_ends_where_its_share_is_reached_exactly(size: int) -> None:
    """Of equally probable tokens, as many as two to some power, the lower half of the ids is kept."""
    rows = [Row(np.zeros(size, np.float32), SamplingParams(top_p=0.5), LARGEST)]

    assert run(rows)[0].tolist() == [size // 2 - 1]
    assert_agree(rows)


def test_a_flat_distribution_over_a_large_vocabulary() -> None:
    """Of 50,000 tokens that random weights make about equally probable, limits far behind the head end in one place."""
    rng = np.random.default_rng(9)
    params = [
        SamplingParams(top_p=0.9),
        SamplingParams(min_p=0.05),
        SamplingParams(top_k=1000),
        SamplingParams(top_k=1000, top_p=0.9),
        SamplingParams(top_k=20_000, top_p=0.8, min_p=0.1),
    ]
    rows = [
        Row(rng.normal(0, 0.6, 50_000).astype(np.float32), each, rng.random(dtype=np.float32))
        for each in params
        for _ in range(4)
    ]

    assert_agree(rows, max_at_a_border=1)


def test_min_p_excludes_behind_the_head_too() -> None:
    """Of 300 equally probable tokens and 300 a little less so, which share a group, min-p leaves the former."""
    logits = np.tile(np.array([0.0, -0.05], np.float32), 300)
    rows = [Row(logits, SamplingParams(min_p=0.97), u) for u in np.linspace(0, LARGEST, 40, dtype=np.float32)]

    assert not (run(rows)[0] % 2).any()
