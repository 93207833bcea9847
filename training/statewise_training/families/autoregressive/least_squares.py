"""Vector autoregression by least squares, in memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

_PIECE_NUMBERS = 1 << 20
"""Numbers in one piece of the equations for QR."""


def num_equations(documents: Sequence[NDArray[np.float32]], window: int) -> int:
    """Number of items, over all documents, that a whole window precedes."""
    return sum(max(len(document) - window, 0) for document in documents)


def least_squares(
    documents: Sequence[NDArray[np.float32]], window: int, piece_numbers: int = _PIECE_NUMBERS
) -> tuple[Vectors, Vectors, Vectors]:
    """Fit by least squares: mean `[features]`, coefficients `[features, window * features]`, intercept `[features]`.

    An item is intercept + coefficients @ (the items before it minus the mean, the oldest first). QR
    factorises the equations in pieces and keeps only the triangle R (Demmel et al. 2012, section 2), so the condition
    number is not squared; an underdetermined system gets its minimum-norm solution.
    """
    mean = np.concatenate(documents).mean(axis=0, dtype=np.float64)
    features = len(mean)
    triangle = np.empty((0, (window + 1) * features + 1))
    for equations in _equations(documents, window, mean, piece_numbers):
        triangle = np.linalg.qr(np.concatenate([triangle, equations]), mode="r")
    known, wanted = triangle[:, :-features], triangle[:, -features:]
    solution = np.linalg.lstsq(known, wanted, rcond=None)[0]
    return mean, solution[1:].T, solution[0] + mean


def _equations(
    documents: Sequence[NDArray[np.float32]], window: int, mean: Vectors, piece_numbers: int
) -> Iterator[Vectors]:
    """Rows `[1, items of a window, item after it]`, with the mean subtracted from the items."""
    width = (window + 1) * len(mean)
    step = max(1, piece_numbers // width)
    for document in documents:
        for start in range(0, len(document) - window, step):
            piece = document[start : start + step + window] - mean
            rows = sliding_window_view(piece, window + 1, axis=0).swapaxes(1, 2).reshape(-1, width)
            yield np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
