"""Baselines: simple predictors of the same held-out items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from statewise_training.data.chunks import Items
from statewise_training.data.counting import count_pairs, neighbours


def unigram_bits(train: Sequence[Items], held_out: Sequence[Items], vocabulary_size: int) -> float:
    """Bits of the held-out items under an order-0 model: counts of `train`, add-one smoothed.

    Documents are token ids; the first item of each is given, not predicted, as for every model here.
    """
    counts = np.bincount(neighbours(train)[1], minlength=vocabulary_size) + 1
    probabilities = counts / counts.sum()
    return float(-np.log2(probabilities[neighbours(held_out)[1]]).sum())


def bigram_bits(train: Sequence[Items], held_out: Sequence[Items], vocabulary_size: int) -> float:
    """Bits of the held-out items under an order-1 model: (count(a, b) + 1) / (count(a) + vocabulary_size)."""
    probabilities = count_pairs(train, vocabulary_size).probabilities(*neighbours(held_out))
    return float(-np.log2(probabilities).sum())


def frequency_nats(train: NDArray[np.int64], held_out: NDArray[np.int64], num_labels: int) -> float:
    """Nats per label of predicting the frequencies of the training labels, add-one smoothed; indices `[n]` each."""
    counts = np.bincount(train, minlength=num_labels) + 1
    return float(-np.log(counts / counts.sum())[held_out].mean())


def last_value_error(held_out: Sequence[Items]) -> float:
    """Mean squared error of predicting each vector by the previous one."""
    differences = np.concatenate([np.diff(document.astype(np.float64), axis=0) for document in held_out])
    return float(np.square(differences).mean())


def last_value_nats(train: Sequence[Items], held_out: Sequence[Items]) -> float:
    """Nats per item of a Gaussian random walk, with steps fitted to the training part."""
    return _gaussian_nats(*(np.concatenate([np.diff(item, axis=0) for item in part]) for part in (train, held_out)))


def independent_nats(train: Sequence[Items], held_out: Sequence[Items]) -> float:
    """Nats per item of independent draws from one Gaussian, fitted to the training part."""
    return _gaussian_nats(np.concatenate(train), np.concatenate([document[1:] for document in held_out]))


def _gaussian_nats(train: Items, held_out: Items) -> float:
    """Mean negative log-density of vectors `[item, features]` under the Gaussian fitted to `train`."""
    mean = train.mean(axis=0, dtype=np.float64)
    factor = np.linalg.cholesky(np.cov(train.T.astype(np.float64)).reshape(len(mean), -1) + 1e-9 * np.eye(len(mean)))
    whitened = np.linalg.solve(factor, (held_out - mean).T)
    constant = 0.5 * len(mean) * np.log(2 * np.pi) + np.log(np.diag(factor)).sum()
    return float(0.5 * np.square(whitened).sum(axis=0).mean() + constant)


def mean_value_error(train: Sequence[Items], held_out: Sequence[Items]) -> float:
    """Mean squared error of predicting the training part's mean."""
    mean = np.concatenate(train).astype(np.float64).mean(axis=0)
    return float(np.square(np.concatenate([document[1:] for document in held_out]) - mean).mean())
