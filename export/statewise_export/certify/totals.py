"""Errors of outputs, added up over the cases of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import OutputAgreement

Array = NDArray[Any]


@dataclass
class OutputTotals:
    """Largest errors so far, and the number of positions that were compared."""

    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    positions: int = 0

    def add(self, actual: Sequence[Array], expected: Sequence[Array], num_positions: int) -> float:
        """Compare outputs with those expected; returns the largest absolute error among them."""
        errors = [np.abs(a.astype(np.float64) - e) for a, e in zip(actual, expected, strict=True)]
        relative = [error / np.maximum(np.abs(e), 1.0) for error, e in zip(errors, expected, strict=True)]
        # NumPy's maximum keeps a NaN, Python's max would lose it.
        largest = np.max([error.max(initial=0.0) for error in errors])
        self.max_absolute_error = float(np.maximum(self.max_absolute_error, largest))
        self.max_relative_error = float(np.max([self.max_relative_error, *(r.max(initial=0.0) for r in relative)]))
        self.positions += num_positions
        return float(largest)

    @property
    def agreement(self) -> OutputAgreement:
        """The record for the certificate."""
        return OutputAgreement(
            max_absolute_error=self.max_absolute_error,
            max_relative_error=self.max_relative_error,
            positions_compared=self.positions,
        )
