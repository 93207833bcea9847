"""Logit bias and penalties of one sequence, as the short list of tokens that they touch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statewise.rules.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Tokens of one row whose logits a bias or a penalty changes."""

    ids: NDArray[np.int64]
    """`[entry]`, each token once; at least one."""
    values: NDArray[np.float32]
    """`[entry, 3]`: logit bias, 1 where seen in prompt or output, times in the output."""


class LogitAdjuster:
    """Keeps count of a sequence's tokens for the penalties that ask for it."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._counts: dict[int, int] = dict.fromkeys(prompt, 0) if params.penalizes else {}

    @property
    def changes(self) -> bool:
        """Whether each token changes the adjustment of the next one."""
        return self._params.penalizes

    def append(self, tokens: Iterable[int]) -> None:
        """Count tokens of the output."""
        if self.changes:
            for token in tokens:
                self._counts[token] = self._counts.get(token, 0) + 1

    def adjustment(self) -> Adjustment | None:
        """What applies to the next token, None where nothing does."""
        counts, bias = self._counts, self._params.logit_bias
        tokens = list(counts.keys() | bias.keys())
        if not tokens:
            return None
        values = [(bias.get(token, 0.0), token in counts, counts.get(token, 0)) for token in tokens]
        return Adjustment(np.array(tokens, np.int64), np.array(values, np.float32))
