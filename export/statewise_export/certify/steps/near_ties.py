"""Near ties: tokens that differ only because outputs, equal within the tolerance, fall on two sides of a decision."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
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
    order = sampling.sort_tokens(scaled)
    loosened = replace(params, top_p=min(params.top_p + tolerance, 1.0), min_p=max(params.min_p - tolerance, 0.0))
    surely, maybe = _preceding(scaled, token, tolerance)
    # In the head a rounding may change places, so that its end is told by the mass before a token.
    in_head = scaled >= scaled[order[: sampling.HEAD]].min() - 2 * tolerance
    whole = np.where(weights < loosened.min_p * weights.max(), 0.0, weights)
    lows, highs = [float("inf")], [float("-inf")]
    for each, shift in product((params, loosened), (-2 * tolerance, 0.0, 2 * tolerance)):
        kept = np.empty_like(weights)
        kept[order] = sampling.restrict(_with_tail_moved(scaled[order], shift), weights[order], each)
        mass = kept.sum()
        kept[in_head] = whole[in_head]
        before = kept[surely].sum()
        # The last token that is kept ends at the mass: one that begins there is excluded.
        if kept[token] and before < mass * (1 - 1e-9):
            lows.append(float(before / mass))
            highs.append(float(kept[maybe].sum() / mass))
    return min(lows), max(highs)


def _with_tail_moved(ordered: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Return the logits as rounding might group them."""
    return np.concatenate([ordered[: sampling.HEAD], ordered[sampling.HEAD :] + shift])


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
