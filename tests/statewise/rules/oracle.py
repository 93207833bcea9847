"""Top-k, top-p and min-p as the textbook says: the whole vocabulary sorted, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from statewise.rules.sampling import FloatArray, SamplingParams


def kept_by_sorting(logits: FloatArray, params: SamplingParams, slack: float = 0.0) -> NDArray[np.bool_]:
    """Flags `[vocabulary]` of the tokens that may be drawn, with the limits of top-p and min-p looser by `slack`.

    Logits are float32, and so is their quotient by the temperature: of these, ties are ties, the lower id first.
    """
    scaled = logits / np.float32(params.temperature)
    exact = np.exp(scaled.astype(np.float64) - scaled.max())
    order = np.lexsort((np.arange(len(scaled)), -scaled))
    sorted_weights = exact[order]
    in_top_k = np.arange(len(order)) < (params.top_k or len(order))
    mass_before = np.cumsum(sorted_weights) - sorted_weights
    share = np.float32(params.top_p) * sorted_weights[in_top_k].sum() + slack * sorted_weights.sum()
    in_top_p = (mass_before < share) | (params.top_p == 1)
    likely = sorted_weights >= (np.float32(params.min_p) - slack)
    kept = np.zeros(len(order), bool)
    kept[order] = in_top_k & in_top_p & likely
    return kept


def probabilities_by_sorting(logits: FloatArray, params: SamplingParams) -> NDArray[np.float64]:
    """Probabilities `[vocabulary]` of the tokens that may be drawn."""
    scaled = (logits / np.float32(params.temperature)).astype(np.float64)
    weights = np.exp(scaled - scaled.max())
    weights[~kept_by_sorting(logits, params)] = 0
    result: NDArray[np.float64] = weights / weights.sum()
    return result
