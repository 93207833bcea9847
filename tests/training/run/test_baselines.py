from __future__ import annotations

import math

import numpy as np
import pytest

from statewise_training.run.baselines import bigram_bits, last_value_error, mean_value_error, unigram_bits

A = np.array([0, 1, 1, 2], np.int32)
B = np.array([0, 2], np.int32)


def test_unigram_bits_in_closed_form() -> None:
    """Of training items 1, 1, 2 and 2 in a vocabulary of 4, add-one gives 1 the share 3/8, and 3 the share 1/8."""
    held_out = [np.array([0, 1, 3], np.int32)]

    assert unigram_bits([A, B], held_out, 4) == pytest.approx(-math.log2(3 / 8) - math.log2(1 / 8))


def test_bigram_bits_in_closed_form() -> None:
    """After 0 came 1 and 2, after 1 came 1 and 2: p(1|0) = 2/6, p(1|1) = 2/6; after 3 nothing: p(0|3) = 1/4."""
    held_out = [np.array([0, 1, 1], np.int32), np.array([3, 0], np.int32)]

    assert bigram_bits([A, B], held_out, 4) == pytest.approx(2 * -math.log2(1 / 3) - math.log2(1 / 4))


def test_baselines_are_distributions() -> None:
    """Over the whole vocabulary the shares add up to one, after any context."""
    for context in range(4):
        following = [np.array([context, token], np.int32) for token in range(4)]

        assert sum(2 ** -bigram_bits([A, B], [pair], 4) for pair in following) == pytest.approx(1)
        assert sum(2 ** -unigram_bits([A, B], [pair], 4) for pair in following) == pytest.approx(1)


def test_a_chain_of_order_one_is_predicted_at_its_entropy() -> None:
    """On a long sample of a Markov chain, the bigram baseline comes close to the chain's entropy rate."""
    rng = np.random.default_rng(0)
    flips = (rng.random(50_000) < 0.1).cumsum() % 2
    entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))

    bits = bigram_bits([flips[:40_000]], [flips[40_000:]], 2) / 9_999

    assert bits == pytest.approx(entropy, abs=0.02)


def test_series_errors_in_closed_form() -> None:
    """The differences of 0, 1, 3 are 1 and 2; the training mean is 2."""
    held_out = [np.array([[0.0], [1.0], [3.0]], np.float32)]

    assert last_value_error(held_out) == pytest.approx((1 + 4) / 2)
    assert mean_value_error([np.array([[1.0], [3.0]], np.float32)], held_out) == pytest.approx((1 + 1) / 2)
