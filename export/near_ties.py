"""Whether two tokens differ only because two outputs, equal within the tolerance, fall on two sides of a decision."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Whether `token` would have been chosen after `output` with numbers that differ by at most `tolerance`.

    logits `[vocabulary]`, as the reference had them.
    """
    adjusted = sampling.adjust_logits(logits, params, prompt.tolist(), output.tolist())
    if params.is_greedy:
        return bool(adjusted.max() - adjusted[token] <= tolerance)
    uniform = Uniforms(params.seed or 0).take(len(output), 1)[0]
    return any(sampling.choose(adjusted, p, u) == token for p, u in _nearby(params, uniform, tolerance))


def _nearby(
    params: SamplingParams, uniform: np.float32, tolerance: float
) -> Iterator[tuple[SamplingParams, np.float32]]:
    """The draw and its limits, a little lower and a little higher."""
    for shift in (-tolerance, tolerance):
        yield params, np.float32(min(max(uniform + shift, 0.0), np.nextafter(np.float32(1), np.float32(0))))
        if params.top_p < 1.0:
            yield replace(params, top_p=min(max(params.top_p + shift, tolerance), 1.0)), uniform
        if params.min_p > 0.0:
            yield replace(params, min_p=min(max(params.min_p + shift, 0.0), 1.0)), uniform
