"""Logit bias and penalties of one sequence, as the short list of tokens that they touch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.rules.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Tokens of one row whose logits a bias or a penalty changes."""

    tokens: NDArray[np.int64]
    """`[entry]`, each token once; at least one."""
    logit_bias: NDArray[np.float32]
    """`[entry]`."""
    seen: NDArray[np.bool_]
    """`[entry]`: whether the token occurs in the prompt or the output."""
    output_counts: NDArray[np.float32]
    """`[entry]`: how often the token occurs in the output."""

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays, tokens first."""
        return self.tokens, self.logit_bias, self.seen, self.output_counts


class LogitAdjuster:
    """Counts a sequence's tokens, where a penalty reads the counts."""

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
        """The adjustment of the next token's logits, None where there is none."""
        counts, bias = self._counts, self._params.logit_bias
        tokens = list(counts.keys() | bias.keys())
        if not tokens:
            return None
        return Adjustment(
            np.array(tokens, np.int64),
            np.array([bias.get(token, 0.0) for token in tokens], np.float32),
            np.array([token in counts for token in tokens], np.bool_),
            np.array([counts.get(token, 0) for token in tokens], np.float32),
        )
