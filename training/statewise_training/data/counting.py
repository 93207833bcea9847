"""Counts of pairs of neighbouring tokens, and the probabilities estimated from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statewise_training.data.chunks import Items

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PairCounts:
    """Counts of each pair of neighbouring tokens.

    Stores only pairs that occur: a full table of a large vocabulary would not fit into memory.
    """

    vocabulary_size: int
    pairs: Ids
    """Keys `previous * vocabulary_size + following` of the pairs that occur, ascending."""
    counts: Ids
    """Count of each of `pairs`."""
    context_counts: Ids
    """Count of each token as the first of a pair, `[vocabulary_size]`."""

    def probabilities(self, previous: Ids, following: Ids, smoothing: float = 1.0) -> NDArray[np.float64]:
        """Lidstone estimates of some pairs: (count(a, b) + smoothing) / (count(a) + smoothing * vocabulary_size)."""
        wanted = previous * self.vocabulary_size + following
        places = np.searchsorted(self.pairs, wanted).clip(max=len(self.pairs) - 1)
        seen = np.where(self.pairs[places] == wanted, self.counts[places], 0)
        return (seen + smoothing) / (self.context_counts[previous] + smoothing * self.vocabulary_size)

    def log_probability_table(self, smoothing: float = 1.0) -> NDArray[np.float32]:
        """Log-probabilities of all pairs, `[previous, following]`, in nats; `smoothing` above 0."""
        size = self.vocabulary_size
        table = np.full((size, size), smoothing, np.float32)
        table.ravel()[self.pairs] += self.counts
        table /= (self.context_counts + smoothing * size)[:, None].astype(np.float32)
        return np.log(table, out=table)


def count_pairs(documents: Sequence[Items], vocabulary_size: int) -> PairCounts:
    """Count all pairs of neighbours within documents of token ids."""
    previous, following = neighbours(documents)
    pairs, counts = np.unique(previous * vocabulary_size + following, return_counts=True)
    return PairCounts(vocabulary_size, pairs, counts, np.bincount(previous, minlength=vocabulary_size))


def neighbours(documents: Sequence[Items]) -> tuple[Ids, Ids]:
    """Return previous and following item of every pair of neighbours, over all documents."""
    previous = np.concatenate([document[:-1] for document in documents]).astype(np.int64)
    following = np.concatenate([document[1:] for document in documents]).astype(np.int64)
    return previous, following
