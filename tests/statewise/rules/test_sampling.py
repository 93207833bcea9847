"""The sampling rules, against their textbook definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from statewise.errors import InvalidRequestError
from statewise.rules.sampling import (
    GREEDY,
    HEAD,
    MAX_LOGIT_BIAS_ENTRIES,
    FloatArray,
    SamplingParams,
    Uniforms,
    adjust_logits,
    choose,
    log_softmax,
)
from tests.statewise.rules.oracle import probabilities_by_sorting

LARGEST = np.nextafter(np.float32(1), np.float32(0))
"""The largest uniform number that there is."""

GOLDEN = {
    0: [0.034741878509521484, 0.011546730995178223, 0.6119502186775208, 0.24154919385910034],
    7: [0.5363948941230774, 0.8734502792358398, 0.40157681703567505, 0.8446071147918701],
    2**64 - 1: [0.5541741251945496, 0.2349415421485901, 0.6799777746200562, 0.7173107266426086],
}
"""Numbers 0 to 3 by seed; for seed 7, numbers 256 to 259."""

LOGITS = np.array([1.0, 3.0, 2.0, 0.0, 3.0, -1.0], np.float32)
"""Sorted by falling logit, ties by id: 1 4 2 0 3 5."""

vectors = stn.arrays(
    np.float32, st.integers(2, 300), elements=st.floats(-20, 20, width=32).map(lambda value: round(value, 1))
)


def kept(logits: FloatArray, params: SamplingParams) -> set[int]:
    """Return the tokens that a fine grid of uniform numbers can draw."""
    grid = np.append(np.arange(0, 1, 1 / 2000, dtype=np.float32), LARGEST)
    return {choose(logits, params, uniform) for uniform in grid}


def probabilities(logits: FloatArray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max())
    return exact / exact.sum()


@given(vectors)
def test_greedy_takes_the_lowest_of_the_most_probable(logits: FloatArray) -> None:
    """Temperature 0 takes the largest logit, and of several equal ones the lowest id."""
    token = choose(logits, GREEDY, np.float32(0.5))

    assert token == min(index for index, value in enumerate(logits) if value == logits.max())


@pytest.mark.parametrize(("k", "expected"), [(1, {1}), (2, {1, 4}), (3, {1, 4, 2}), (6, set(range(6)))])
def test_top_k_keeps_the_k_most_probable(k: int, expected: set[int]) -> None:
    """Just the k largest logits can be drawn; where the k-th is tied, the lower id stays."""
    assert kept(LOGITS, SamplingParams(top_k=k)) == expected


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    """A k larger than the vocabulary excludes nothing."""
    assert kept(LOGITS, SamplingParams(top_k=1000)) == set(range(6))


@given(vectors, st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99]), st.integers(0, 2**24 - 1))
def test_top_p_keeps_the_shortest_sufficient_prefix(logits: FloatArray, top_p: float, uniform: int) -> None:
    """A token is drawn only while the tokens more probable than it hold less than top_p."""
    token = choose(logits, SamplingParams(top_p=top_p), np.float32(uniform / 2**24))

    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    before = probabilities(logits)[order[: order.index(token)]].sum()

    assert before < top_p + 1e-5


def test_top_p_keeps_every_token_of_that_prefix() -> None:
    """Probabilities 0.5, 0.3, 0.2: top_p 0.5 keeps one token, 0.6 two, 0.81 three."""
    logits = np.log(np.array([0.3, 0.5, 0.2], np.float32))

    sets = [kept(logits, SamplingParams(top_p=top_p)) for top_p in (0.49, 0.6, 0.81)]

    assert sets == [{1}, {0, 1}, {0, 1, 2}]


def test_top_p_ends_where_its_share_is_reached_exactly() -> None:
    """Of four equally probable tokens, the two lowest ids hold half; a third is not needed."""
    assert kept(np.zeros(4, np.float32), SamplingParams(top_p=0.5)) == {0, 1}


@given(vectors, st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.integers(0, 2**24 - 1))
def test_min_p_excludes_what_is_too_far_below_the_most_probable(logits: FloatArray, min_p: float, uniform: int) -> None:
    """A token is drawn only if it is at least min_p times as probable as the most probable one."""
    token = choose(logits, SamplingParams(min_p=min_p), np.float32(uniform / 2**24))

    assert math.exp(logits[token] - logits.max()) >= min_p * (1 - 1e-5)


def test_min_p_keeps_every_token_above_it() -> None:
    """Probabilities 0.5, 0.3, 0.2 against 0.5: min_p 0.7 keeps one token, 0.5 two, 0.3 three."""
    logits = np.log(np.array([0.3, 0.5, 0.2], np.float32))

    sets = [kept(logits, SamplingParams(min_p=min_p)) for min_p in (0.7, 0.5, 0.3)]

    assert sets == [{1}, {0, 1}, {0, 1, 2}]


def test_restrictions_combine_to_the_shortest_prefix() -> None:
    """Top-p counts the share of what top-k left: 0.5 and 0.3 of 0.8 are 62.5% and 37.5%."""
    logits = np.log(np.array([0.3, 0.5, 0.2], np.float32))

    assert kept(logits, SamplingParams(top_k=2, top_p=0.6)) == {1}
    assert kept(logits, SamplingParams(top_k=2, top_p=0.63)) == {0, 1}
    assert kept(logits, SamplingParams(top_k=3, top_p=0.9, min_p=0.7)) == {1}


@settings(max_examples=200)
@given(vectors, st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([0, 1, 5, 200]), st.sampled_from([0.3, 1.0]))
def test_the_ends_of_the_uniform_range_draw_a_possible_token(
    logits: FloatArray, position: float, top_k: int, top_p: float
) -> None:
    """A uniform number of 0, and the largest below 1, never draw an excluded or an impossible token."""
    logits = np.append(logits, np.float32(-np.inf)).astype(np.float32)
    uniform = min(np.float32(position), LARGEST)

    token = choose(logits, SamplingParams(top_k=top_k, top_p=top_p), uniform)

    assert 0 <= token < len(logits) - 1


@pytest.mark.parametrize("size", [HEAD - 1, HEAD, HEAD + 1, 3 * HEAD])
def test_a_draw_in_two_levels_is_an_inverse_cdf(size: int) -> None:
    """Without restriction, the token is the one whose part of the cumulative distribution holds the uniform number."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 2, size).astype(np.float32)
    cumulative = probabilities(logits).cumsum()

    for uniform in rng.random(200, dtype=np.float32):
        token = choose(logits, SamplingParams(), uniform)
        low = cumulative[token - 1] if token else 0.0

        assert low - 1e-6 <= uniform <= cumulative[token] + 1e-6


def chi_square(logits: FloatArray, params: SamplingParams, expected: np.ndarray) -> float:
    """Pearson's statistic of 20,000 draws."""
    uniforms = Uniforms(20_111).take(0, 20_000)
    counts = np.bincount([choose(logits, params, u) for u in uniforms], minlength=len(logits))
    possible = expected > 0

    assert not counts[~possible].any()

    return float(((counts - 20_000 * expected)[possible] ** 2 / (20_000 * expected[possible])).sum())


def test_draws_follow_the_distribution() -> None:
    """20,000 draws fit the softmax of the scaled logits (chi-square, 9 degrees of freedom, p > 0.001)."""
    logits = np.linspace(-2, 1.5, 10, dtype=np.float32)

    statistic = chi_square(logits, SamplingParams(temperature=1.3), probabilities(logits / np.float32(1.3)))

    assert statistic < 27.88


def test_restricted_draws_follow_the_renormalized_distribution() -> None:
    """20,000 draws among the 6 most probable of 10 tokens fit their shares (5 degrees of freedom, p > 0.001)."""
    logits = np.linspace(-2, 1.5, 10, dtype=np.float32)
    expected = probabilities(logits)
    expected[:4] = 0

    assert chi_square(logits, SamplingParams(top_k=6), expected / expected.sum()) < 20.52


@pytest.mark.parametrize(
    ("params", "num_kept"),
    [(SamplingParams(top_p=0.5), 380), (SamplingParams(top_k=150), 150), (SamplingParams(min_p=0.6), 511)],
)
def test_draws_behind_the_head_follow_the_renormalized_distribution(params: SamplingParams, num_kept: int) -> None:
    """20,000 draws from some hundreds of 1,000 tokens fit the shares of those kept, in ten bins (p > 0.001)."""
    logits = np.random.default_rng(4).permutation(np.linspace(-1, 0, 1000)).astype(np.float32)
    expected = probabilities_by_sorting(logits, params)
    drawn = np.bincount([choose(logits, params, u) for u in Uniforms(20_111).take(0, 20_000)], minlength=1000)
    bins = np.array_split(np.argsort(-logits)[:num_kept], 10)
    observed, probable = (
        np.array([values[ids].sum() for ids in bins]) for values in (drawn, 20_000 * expected)
    )  # fmt: skip

    assert np.count_nonzero(expected) == num_kept
    assert observed.sum() == 20_000
    assert ((observed - probable) ** 2 / probable).sum() < 27.88


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.5), SamplingParams(top_k=512)])
def test_of_equals_the_lowest_ids_are_kept(params: SamplingParams) -> None:
    """Of 1,024 equally probable tokens the lower half of the ids is drawn, each alike, by eight bins (p > 0.001)."""
    logits = np.zeros(1024, np.float32)

    counts = np.bincount([choose(logits, params, u) for u in Uniforms(7).take(0, 20_000)], minlength=1024)
    observed = counts[:512].reshape(8, 64).sum(axis=1)

    assert observed.sum() == 20_000
    assert ((observed - 2500) ** 2 / 2500).sum() < 24.33


def test_penalties_follow_their_formulas() -> None:
    """Repetition divides positive logits and multiplies others; presence counts once, frequency each time."""
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)

    adjusted = adjust_logits(LOGITS, params, prompt=[5, 1, 1], output=[0, 0, 3, 1])

    assert adjusted.tolist() == [
        1.0 / 2 - 0.5 - 2 * 0.25,
        3.0 / 2 - 0.5 - 0.25,
        2.0,
        0.0 * 2 - 0.5 - 0.25,
        3.0,
        -1.0 * 2,
    ]


def test_the_bias_is_added_before_the_penalties() -> None:
    """A logit of 1 with a bias of -3 is a negative one when the repetition penalty looks at it."""
    params = SamplingParams(logit_bias={0: -3.0, 2: 1.0}, repetition_penalty=2.0)

    adjusted = adjust_logits(LOGITS, params, prompt=[0], output=[])

    assert adjusted.tolist() == [-4.0, 3.0, 3.0, 0.0, 3.0, -1.0]


def test_adjusting_leaves_the_given_logits_alone() -> None:
    """The logits that were passed in are not written to."""
    before = LOGITS.copy()

    adjust_logits(LOGITS, SamplingParams(logit_bias={0: 5.0}, presence_penalty=1.0), [1], [2])

    assert (before == LOGITS).all()


def test_log_softmax_is_the_logarithm_of_the_softmax() -> None:
    """Log-probabilities are right along the last axis, large logits included."""
    logits = np.array([[1.0, 2.0, 3.0], [1e4, 1e4 - 1, -1e4]], np.float32)

    result = log_softmax(logits)

    assert np.exp(result[0]) == pytest.approx(probabilities(logits[0]), rel=1e-6)
    assert result[1].tolist() == pytest.approx([-0.3132617, -1.3132617, -20000.3132617], rel=1e-6)


def test_the_numbers_of_a_seed_are_pinned() -> None:
    """A seed gives these numbers for ever: saved streams and published results depend on it."""
    assert Uniforms(0).take(0, 4).tolist() == pytest.approx(GOLDEN[0], abs=0)
    assert Uniforms(2**64 - 1).take(0, 4).tolist() == pytest.approx(GOLDEN[2**64 - 1], abs=0)
    assert Uniforms(7).take(Uniforms.block_length, 4).tolist() == pytest.approx(GOLDEN[7], abs=0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 5 * Uniforms.block_length), st.integers(1, 2 * Uniforms.block_length))
def test_any_position_equals_the_same_position_of_a_whole_draw(seed: int, position: int, count: int) -> None:
    """Numbers taken from the middle, over block borders too, are those of one long draw."""
    whole = Uniforms(seed).take(0, position + count)

    assert (Uniforms(seed).take(position, count) == whole[position:]).all()


def test_taking_in_any_order_gives_the_same_numbers() -> None:
    """One object that is asked forwards, backwards and again gives what a fresh one gives."""
    used = Uniforms(3)

    for position in (0, 600, 255, 256, 0, 1000):
        assert (used.take(position, 3) == Uniforms(3).take(position, 3)).all()


def test_numbers_neither_repeat_between_blocks_nor_between_seeds() -> None:
    """Eight blocks of two seeds share no run of numbers, and all lie in [0, 1)."""
    blocks = [
        Uniforms(seed).take(index * Uniforms.block_length, Uniforms.block_length)
        for seed in (1, 2)
        for index in range(8)
    ]

    # Three neighbours make a key of 72 bits: equal only where sequences overlap.
    runs = [tuple(block[at : at + 3].tolist()) for block in blocks for at in range(Uniforms.block_length - 2)]

    assert len(set(runs)) == len(runs)
    assert all(((block >= 0) & (block < 1)).all() and block.dtype == np.float32 for block in blocks)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (name, value)
            for name in (
                "temperature",
                "top_p",
                "min_p",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
            )
            for value in (math.nan, math.inf, -math.inf, 1e6, -3.0)
        ),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_k", 2**40),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("logit_bias", {10: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: -math.inf}),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS_ENTRIES + 1), 1.0)),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(field: str, value: object) -> None:
    """Each bad value raises an error whose field and message name it, NaN and infinity included."""
    params = SamplingParams(**{field: value})  # type: ignore[arg-type] # every field in turn

    with pytest.raises(InvalidRequestError) as raised:
        params.validate(vocabulary_size=10)

    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}: ")


def test_the_limits_themselves_are_allowed() -> None:
    """The ends of every closed range, a tiny top_p and the largest seed pass."""
    SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0).validate(2)
    SamplingParams(
        temperature=100.0,
        top_k=2**31,
        top_p=1e-9,
        min_p=1.0,
        repetition_penalty=100.0,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias={0: -100.0, 1: 100.0},
        seed=2**64 - 1,
    ).validate(2)
