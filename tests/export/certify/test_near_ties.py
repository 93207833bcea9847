"""Which differing tokens a certificate may forgive: those at a border, and no others."""

import numpy as np
import pytest

from statewise.rules.sampling import SamplingParams, Uniforms, choose
from statewise_export.certify.steps.near_ties import is_near_tie

NONE = np.empty(0, np.int64)
TOLERANCE = 1e-4


def near(
    probabilities: list[float], params: SamplingParams, token: int, logits_shift: dict[int, float] | None = None
) -> bool:
    logits = np.log(np.array(probabilities, np.float32))
    for index, shift in (logits_shift or {}).items():
        logits[index] += np.float32(shift)
    return is_near_tie(logits, params, NONE, NONE, token, TOLERANCE)


def uniform(seed: int) -> float:
    return float(Uniforms(seed).take(0, 1)[0])


def test_greedy_forgives_a_logit_as_large_as_the_largest() -> None:
    """Half the tolerance below the largest logit is a tie, twice the tolerance is none."""
    greedy = SamplingParams(temperature=0.0)

    assert near([0.4, 0.4, 0.2], greedy, 1, {1: -TOLERANCE / 2})
    assert not near([0.4, 0.4, 0.2], greedy, 1, {1: -TOLERANCE * 2})
    assert not near([0.4, 0.4, 0.2], greedy, 2)


def test_greedy_looks_at_logits_with_penalties_and_bias() -> None:
    """A tie that a bias makes is one; a tie that a penalty breaks is none."""
    assert near([0.6, 0.3, 0.1], SamplingParams(temperature=0.0, logit_bias={1: float(np.log(2))}), 1)
    logits = np.zeros(3, np.float32)
    penalized = SamplingParams(temperature=0.0, presence_penalty=1.0)

    assert not is_near_tie(logits, penalized, NONE, np.array([1]), 1, TOLERANCE)
    assert is_near_tie(logits, penalized, NONE, np.array([1]), 2, TOLERANCE)


@pytest.mark.parametrize("restriction", [{}, {"top_k": 3}, {"top_p": 0.99999}, {"min_p": 1e-6}])
@pytest.mark.parametrize("distance", [TOLERANCE / 2, 3 * TOLERANCE])
def test_a_draw_forgives_the_neighbour_of_a_border(restriction: dict[str, float], distance: float) -> None:
    """A token whose part begins just above the uniform number is forgiven, one that begins further up is not."""
    border = uniform(0) + distance
    params = SamplingParams(seed=0, **restriction)  # type: ignore[arg-type] # top_k is a whole number above
    probabilities = [0.9 * (1 - border), border, 0.1 * (1 - border)]
    ordered = sorted(probabilities, reverse=True)
    # Restricted rows draw from the most probable token down, others in the order of ids.
    ids = [probabilities.index(value) for value in ordered] if restriction else [1, 0, 2]
    logits = np.log(np.array(probabilities if restriction else [border, *probabilities[::2]], np.float32))
    bounds = np.cumsum([probabilities[index] for index in ids])
    inside = int(np.searchsorted(bounds, uniform(0)))
    tokens = ids if restriction else [0, 1, 2]

    results = [is_near_tie(logits, params, NONE, NONE, token, TOLERANCE) for token in tokens]

    expected = [
        place == inside or min(abs(uniform(0) - low), abs(uniform(0) - high)) <= TOLERANCE
        for place, (low, high) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True))
    ]
    assert results == expected


def test_a_token_that_the_rules_exclude_is_never_forgiven() -> None:
    """Beyond top-k, top-p or min-p by more than the tolerance there is no tie, whatever the uniform number."""
    probabilities = [0.5, 0.3, 0.2]

    for seed in range(20):
        assert not near(probabilities, SamplingParams(seed=seed, top_k=2), 2)
        assert not near(probabilities, SamplingParams(seed=seed, top_p=0.79), 2)
        assert not near(probabilities, SamplingParams(seed=seed, min_p=0.41), 2)


def test_the_sign_for_logits_that_are_not_finite_is_never_forgiven() -> None:
    """Token -1 is not a name for the last token."""
    assert not near([0.1, 0.1, 0.8], SamplingParams(temperature=0.0), -1)
    assert not near([0.0001, 0.0001, 0.9998], SamplingParams(seed=0), -1)


@pytest.mark.parametrize(
    "restriction", [{"top_p": 0.9}, {"min_p": 0.3}, {"top_k": 700}, {"top_k": 1500, "top_p": 0.7, "min_p": 0.1}]
)
def test_behind_the_head_rounding_is_forgiven_and_nothing_else(restriction: dict[str, float]) -> None:
    """Of 2,000 tokens, what slightly other logits give is forgiven; tokens elsewhere in the distribution are not."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 0.6, 2000).astype(np.float32)
    rounded = (logits + rng.normal(0, TOLERANCE / 4, logits.shape)).astype(np.float32)

    for seed in range(50):
        params = SamplingParams(seed=seed, **restriction)  # type: ignore[arg-type] # top_k is a whole number above
        token = choose(rounded, params, np.float32(uniform(seed)))

        assert is_near_tie(logits, params, NONE, NONE, token, TOLERANCE)
        forgiven = [is_near_tie(logits, params, NONE, NONE, other, TOLERANCE) for other in range(0, 2000, 97)]
        assert sum(forgiven) <= 2


@pytest.mark.parametrize("restriction", [{"min_p": 0.05}, {"top_p": 0.7}])
def test_what_is_drawn_from_may_differ_too(restriction: dict[str, float]) -> None:
    """In a flat distribution many tokens lie at a rule's limit; the token that the rule chooses is forgiven still."""
    params = SamplingParams(seed=4, **restriction)  # type: ignore[arg-type] # neither is top_k
    logits = np.sort(np.random.default_rng(0).normal(0, 0.8, 16_000).astype(np.float32))[::-1].copy()
    chosen = int(choose(logits, params, np.float32(uniform(4))))

    assert is_near_tie(logits, params, NONE, NONE, chosen, 1e-3)
    assert is_near_tie(logits, params, NONE, NONE, chosen + 1, 1e-3)
    assert not is_near_tie(logits, params, NONE, NONE, chosen + 1000, 1e-3)
