"""Standardisation of real vectors, measured on the training part and kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, model_validator

from statewise.errors import ConfigError
from statewise.model.spec import Strict


class Standardization(Strict):
    """Mean and standard deviation of each feature of a series."""

    mean: tuple[FiniteFloat, ...]
    deviation: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _sizes_agree(self) -> Standardization:
        if len(self.mean) != len(self.deviation) or any(value <= 0 for value in self.deviation):
            raise ValueError("mean and deviation need one number per feature, deviations above 0")
        return self

    @classmethod
    def of(cls, bodies: Sequence[NDArray[np.float32]]) -> Standardization:
        """Measure all series together, `[time, features]` each. Raises ConfigError where a feature is constant."""
        values = np.concatenate(bodies).astype(np.float64)
        deviation = values.std(axis=0)
        constant = np.flatnonzero(deviation == 0)
        if len(constant):
            raise ConfigError(
                f"data.standardize: feature {constant[0]} of the training part never changes; leave it out"
            )
        return cls(mean=values.mean(axis=0).tolist(), deviation=deviation.tolist())

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise a series `[time, features]`: mean 0, deviation 1 per feature."""
        mean, deviation = (np.array(part, np.float32) for part in (self.mean, self.deviation))
        return (values - mean) / deviation
