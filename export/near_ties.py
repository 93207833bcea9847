"""Whether two tokens differ only because two outputs, equal within the tolerance, fall on two sides of a decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise import sampling
from statewise.sampling import SamplingParams, Uniforms


def is_near_tie(
    logits: NDArray[np.float32],
    params: SamplingParams,
    prompt: NDArray[Any],
    output: NDArray[Any],
    token: int,
    tolerance: float,
) -> bool:
    """Whether `token` lies within `tolerance` of the decision taken after `output`.

    Greedy: its logit is that close to the largest. Sampled: the uniform number is that close to the token's part of the
    cumulative distribution. logits `[vocabulary]`, as the reference had them.
    """
    if token < 0:
        return False  # the graph's sign for logits that are not finite
    adjusted = sampling.adjust_logits(logits, params, prompt.tolist(), output.tolist())
    if params.is_greedy:
        return bool(adjusted.max() - adjusted[token] <= tolerance)
    uniform = float(Uniforms(params.seed or 0).take(len(output), 1)[0])
    low, high = _interval(adjusted, params, token, tolerance)
    return low - tolerance <= uniform <= high + tolerance


def _interval(logits: NDArray[np.float32], params: SamplingParams, token: int, tolerance: float) -> tuple[float, float]:
    """The token's part of the cumulative distribution; empty (infinite) where no rule within the tolerance keeps it."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if not params.restricts:
        before = weights[:token].sum()
        return float(before), float(before + weights[token])
    falling = np.sort(scaled)[::-1]
    weights = np.sort(weights)[::-1]
    # Tokens whose logits are equal within the tolerance may stand in any order.
    first = int(np.count_nonzero(scaled > scaled[token] + tolerance))
    last = int(np.count_nonzero(scaled >= scaled[token] - tolerance))
    kept = _num_kept(weights, params, tolerance)
    if first >= kept or falling[min(kept, len(falling)) - 1] > scaled[token] + tolerance:
        return float("inf"), float("-inf")
    # What is drawn from is between the most and the fewest tokens that the rules may keep.
    most, fewest = weights[:kept].sum(), weights[: _num_kept(weights, params, -tolerance)].sum()
    return float(weights[:first].sum() / most), float(weights[:last].sum() / fewest)


def _num_kept(weights: NDArray[np.float64], params: SamplingParams, tolerance: float) -> int:
    """Tokens that the rules keep, at most, with limits moved by the tolerance, at least if negative; weights fall."""
    kept = min(params.top_k or len(weights), len(weights))
    before = (np.cumsum(weights) - weights) / (weights[:kept].sum() if params.top_k else 1.0)
    if params.top_p < 1.0:
        kept = min(kept, int(np.count_nonzero(before < params.top_p + tolerance)))
    if params.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(weights >= (params.min_p - tolerance) * weights[0])))
    return max(kept, 1)
