"""Whether two tokens differ only because two outputs, equal within the tolerance, fall on two sides of a decision."""

from __future__ import annotations

from dataclasses import replace
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
    order = sampling.sort_tokens(scaled)
    loosened = replace(params, top_p=min(params.top_p + tolerance, 1.0), min_p=max(params.min_p - tolerance, 0.0))
    least, mass = (sampling.restrict(scaled[order], weights[order], each)[1] for each in (params, loosened))
    weights[weights < loosened.min_p * weights.max()] = 0.0
    before, until = (weights[tokens].sum() for tokens in _preceding(scaled, token, tolerance))
    # The last token that is kept ends at the mass: one that begins there is excluded.
    if before >= mass * (1 - 1e-9):
        return float("inf"), float("-inf")
    return float(before / mass), float(until / least)


def _preceding(scaled: NDArray[np.float64], token: int, tolerance: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tokens that stand before `token` whatever the rounding; those, and itself, that may.

    Both logits may move, and so may the head's last one, from which the groups are counted.
    """
    least, most = (_positions(scaled, shift) for shift in (-2 * tolerance, 2 * tolerance))
    ids = np.arange(len(scaled))
    surely = (most < least[token]) | ((most == least[token]) & (ids < token))
    maybe = (least < most[token]) | ((least == most[token]) & (ids <= token))
    return surely, maybe


def _positions(scaled: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """What tokens are sorted by, ties by id: the distance in nats from the head's last, a whole group behind it."""
    last = np.sort(scaled)[::-1][: sampling.HEAD][-1]
    distance: NDArray[np.float64] = last - scaled + shift
    groups = np.floor(distance / sampling.GRID).clip(max=sampling.NUM_GROUPS - 1)
    return np.where(distance <= 0, distance, sampling.GRID * (groups + 1))
