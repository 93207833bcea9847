"""Picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from statewise.files import atomic_file

_MOST_NUMBERS = 20
"""Maximum number of labels for which cells show their numbers."""


def plot_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], path: Path, *, title: str) -> None:
    """Plot a confusion matrix, true label by row and predicted by column, as PNG; shaded by the share of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = min(4 + 0.5 * len(names), 24)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(
        title=f"{title}: held out", xlabel="predicted", ylabel="label", yticks=range(len(names)), yticklabels=names
    )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    if len(names) <= _MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            text = f"{share:.2f}" if counts[row, column] else ""
            axes.text(
                column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black", fontsize=8
            )
    figure.colorbar(image, label="share of the row")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
