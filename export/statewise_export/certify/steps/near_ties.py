"""Near ties: tokens that differ only because outputs, equal within the tolerance, fall on two sides of a decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.rules import sampling
from statewise.rules.sampling import SamplingParams, Uniforms


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
    surely, maybe = _preceding(scaled, token, tolerance)
    behind_head = np.ones(len(scaled), bool)
    behind_head[sampling.draw_order(scaled)[: sampling.HEAD]] = False
    lows, highs = [float("inf")], [float("-inf")]
    for each in (_moved(params, -tolerance), params, _moved(params, tolerance)):
        kept = sampling.restrict(scaled, weights, each)
        least = scaled[kept > 0].min()
        if scaled[token] < least - 2 * tolerance:
            continue
        # In the head an excluded token stands behind those kept; behind it rounding may exchange two in between.
        at_the_limit = behind_head & (np.abs(scaled - least) <= 2 * tolerance)
        exchanged = weights[at_the_limit].sum() if (at_the_limit & (kept == 0)).any() else 0.0
        mass = kept.sum()
        kept[token] = weights[token]
        lows.append(float((kept[surely].sum() - exchanged) / mass))
        highs.append(float((kept[maybe].sum() + exchanged) / mass))
    return min(lows), max(highs)


def _moved(params: SamplingParams, by: float) -> SamplingParams:
    """The parameters with the limits of top-p and min-p looser by so much, where they are on."""
    top_p = min(max(params.top_p + by, 1e-9), 1.0) if params.top_p < 1 else 1.0
    min_p = min(max(params.min_p - by, 0.0), 1.0) if params.min_p > 0 else 0.0
    return replace(params, top_p=top_p, min_p=min_p)


def _preceding(scaled: NDArray[np.float64], token: int, tolerance: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Masks of the tokens that surely, and possibly, precede `token` (itself among the latter).

    Both logits may move, and so may the head's last one.
    """
    least, most = (_positions(scaled, shift) for shift in (-2 * tolerance, 2 * tolerance))
    ids = np.arange(len(scaled))
    surely = (most < least[token]) | ((most == least[token]) & (ids < token))
    maybe = (least < most[token]) | ((least == most[token]) & (ids <= token))
    return surely, maybe


def _positions(scaled: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Sort key of each token, ties by id: its distance in nats from the head's last, the same for all behind it."""
    last = np.sort(scaled)[::-1][: sampling.HEAD][-1]
    distance: NDArray[np.float64] = last - scaled + shift
    return np.where(distance <= 0, distance, np.inf)
