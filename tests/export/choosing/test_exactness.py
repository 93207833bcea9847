"""What top-k, top-p and min-p keep, at every size, against sorting the whole vocabulary in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.rules.sampling import HEAD, FloatArray, SamplingParams, Uniforms, choose
from tests.export.choosing.sampler_rows import LARGEST, Row, run
from tests.statewise.rules.oracle import kept_by_sorting, probabilities_by_sorting

SIZES = (1000, 16_000, 50_257)
SLACK = 1e-5
"""Top-p and min-p compare float32 sums with their limits; tokens this close to a limit may fall on either side."""


def logits_of(kind: str, size: int, seed: int = 0) -> FloatArray:
    """Logits as random weights give them, as trained ones do, on a coarse grid with many ties, or all equal."""
    rng = np.random.default_rng(seed)
    if kind == "peaked":
        return (-1.2 * np.log(rng.permutation(size) + 1.0) + rng.normal(0, 0.1, size)).astype(np.float32)
    if kind == "tied":
        return (rng.integers(-8, 8, size) / 4).astype(np.float32)
    if kind == "equal":
        return np.zeros(size, np.float32)
    return rng.normal(0, {"flat": 0.6, "wide": 3.0}[kind], size).astype(np.float32)


KINDS = ("flat", "wide", "peaked", "tied", "equal")


def drawn(logits: FloatArray, params: SamplingParams, uniforms: Sequence[np.float32]) -> np.ndarray:
    """Draw from the graph once for each uniform number, 32 rows at a time."""
    rows = [Row(logits, params, uniform) for uniform in uniforms]
    return np.concatenate([run(rows[start : start + 32])[0] for start in range(0, len(rows), 32)])


def assert_inside(logits: FloatArray, params: SamplingParams, tokens: np.ndarray) -> None:
    outside = tokens[~kept_by_sorting(logits, params, SLACK)[tokens]]

    assert not len(outside), (params, outside.tolist())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [101, 150, 500, 1000, -1])
def test_no_draw_lies_outside_the_k_most_probable(size: int, kind: str, k: int) -> None:
    """Even numbers over the whole range, its ends too, draw among the k most probable alone; ties go to lower ids."""
    logits, k = logits_of(kind, size), min(k % size or size, size)
    grid = np.append(np.linspace(0, 1, 62, endpoint=False, dtype=np.float32), [LARGEST, LARGEST])

    assert_inside(logits, SamplingParams(top_k=k), drawn(logits, SamplingParams(top_k=k), grid))


LARGE = [
    SamplingParams(top_p=0.5),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.999),
    SamplingParams(min_p=0.02),
    SamplingParams(min_p=0.3),
    SamplingParams(top_k=700, top_p=0.8),
    SamplingParams(top_k=700, top_p=0.9999, min_p=0.01),
    SamplingParams(temperature=2.5, top_p=0.7, min_p=0.2),
    SamplingParams(top_k=101, min_p=0.05),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", LARGE, ids=str)
def test_no_draw_lies_outside_a_large_nucleus(size: int, kind: str, params: SamplingParams) -> None:
    """Top-p, min-p and what they make together exclude all beyond their limits, far behind the head too."""
    logits = logits_of(kind, size)
    grid = np.append(np.linspace(0, 1, 31, endpoint=False, dtype=np.float32), LARGEST)

    assert_inside(logits, params, drawn(logits, params, grid))


@pytest.mark.parametrize("kind", ["flat", "tied", "equal"])
@pytest.mark.parametrize(
    "params",
    [SamplingParams(top_k=150), SamplingParams(top_p=0.6), SamplingParams(top_k=400, top_p=0.7, min_p=0.3)],
    ids=str,
)
def test_draws_have_the_probabilities_of_what_is_kept(kind: str, params: SamplingParams) -> None:
    """4,000 draws from 1,000 tokens, those kept in 20 bins by id, pass a chi-square test (19 degrees, p > 0.001)."""
    logits = logits_of(kind, 1000, seed=5)
    expected = probabilities_by_sorting(logits, params)
    kept = np.flatnonzero(expected)
    tokens = drawn(logits, params, Uniforms(3).take(0, 4000))
    assert np.isin(tokens, kept).all()

    bins = np.array_split(kept, 20)
    observed = np.array([np.isin(tokens, ids).sum() for ids in bins])
    probable = 4000 * np.array([expected[ids].sum() for ids in bins])

    assert len(kept) > HEAD
    assert ((observed - probable) ** 2 / probable).sum() < 43.82


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 50),
    st.sampled_from([0, 1, 99, 100, 101, 128, 333, 999, 1000]),
    st.sampled_from([1.0, 0.999, 0.9, 0.6, 0.3, 0.01]),
    st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0]),
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.integers(0, 2**24 - 1),
)
def test_rules_and_graph_draw_inside_what_sorting_keeps(
    kind: str, seed: int, top_k: int, top_p: float, min_p: float, temperature: float, uniform: int
) -> None:
    """Whatever the rules together, NumPy and graph draw a token that sorting in float64 keeps, the last ones too."""
    logits = logits_of(kind, 1000, seed)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    numbers = [np.float32(uniform / 2**24), np.float32(0), LARGEST]

    assert_inside(logits, params, drawn(logits, params, numbers))
    assert_inside(logits, params, np.array([choose(logits, params, number) for number in numbers]))


def test_ties_at_the_limit_go_to_the_lowest_ids() -> None:
    """Of 1,024 equal tokens top-k 150 keeps ids 0 to 149; top-p of a quarter, 0 to 255; of top-k 512's, 0 to 127."""
    logits = np.zeros(1024, np.float32)
    last = [
        int(drawn(logits, params, [LARGEST])[0])
        for params in (
            SamplingParams(top_k=150), SamplingParams(top_p=0.25), SamplingParams(top_k=512, top_p=0.25)
        )
    ]  # fmt: skip

    assert last == [149, 255, 127]
