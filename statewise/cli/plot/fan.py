"""A forecast as a picture: the series so far, the median, and bands around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.cli.plot.figure import new_figure
from statewise.client.values import Forecast

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The ends of the bands in which 90% and 50% of the paths lie, and the median."""


def draw_fan(
    history: NDArray[Any],
    forecast: Forecast,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    truth: NDArray[Any] | None = None,
) -> None:
    """Write a PNG with one panel for each feature; the forecast has the levels LEVELS.

    history `[time, features]`; truth `[horizon, features]`: how the series went on, where that is known.
    """
    num_features = history.shape[1]
    figure = new_figure(10, 1 + 2.5 * num_features)
    for feature, axes in enumerate(figure.subplots(num_features, 1, squeeze=False, sharex=True)[:, 0]):
        before = np.arange(-len(history), 0) + 1
        axes.plot(before, history[:, feature], color="0.3", label="so far")
        # From the last item known, so that no gap lies between.
        start = np.full((len(LEVELS), 1), history[-1, feature])
        lowest, low, median, high, highest = np.concatenate([start, forecast.quantiles[:, :, feature]], axis=1)
        after = np.arange(len(median))
        axes.fill_between(after, lowest, highest, color="tab:blue", alpha=0.2, linewidth=0, label="90% of paths")
        axes.fill_between(after, low, high, color="tab:blue", alpha=0.35, linewidth=0, label="50%")
        axes.plot(after, median, color="tab:blue", label="median")
        if truth is not None:
            axes.plot(after[1:], truth[:, feature], color="tab:red", linewidth=1, label="what came")
        axes.set_ylabel(names[feature] if names else f"feature {feature}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    figure.axes[0].legend(loc="upper left", ncols=5, frameon=False)
    figure.axes[-1].set_xlabel("items from now")
    figure.savefig(path, format="png", dpi=120)
