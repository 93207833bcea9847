"""Pictures of what a model attends to, and of how its gates stand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float32]

DPI = 120
MAX_SIDE = 32.0
"""Inches of a picture's longer side, about: where panels would need more, some labels are left out."""

_ITEM = 0.17
"""Inches that an item takes where there is room, so that its label can be read."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 1.2, 1.0, 0.8, 1.2, 0.35
"""Inches around the panels, and between them."""
_LONGEST_LABEL = 14
_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\r": "⏎", "\t": "⇥"})


def draw_attention(
    weights: Mapping[str, Array], items: Sequence[str], path: Path, *, title: str, first_head: int = 0
) -> None:
    """One heat map for each head, as PNG: a line of panels for each entry of `weights`, `[head, query, key]`.

    `first_head` is the number of the first one. What a query may not see stays white. The scale of colours is that of
    the root, so that weights spread over many items are seen beside one that holds nearly all.
    """
    from matplotlib.colors import PowerNorm

    num_items = next(iter(weights.values())).shape[1]
    num_heads = max(len(heads) for heads in weights.values())
    side = _side(num_items, max(num_heads, len(weights)))
    figure, panels = _panels([side] * len(weights), num_heads, side, _GAP)
    for line, (name, heads) in zip(panels, weights.items(), strict=True):
        for head, axes in enumerate(line):
            if head >= len(heads):
                axes.set_visible(False)
                continue
            image = axes.imshow(np.ma.masked_equal(heads[head], 0), cmap="viridis", norm=PowerNorm(0.5, 0, 1))
            axes.set_title(f"{name}, head {first_head + head}", fontsize=8)
            axes.set(xticks=[], yticks=[])
        _label(line[0].yaxis, items, num_items, side)
    for axes in panels[-1]:
        _label(axes.xaxis, items, num_items, side, rotation=90)
    figure.colorbar(image, cax=_beside(figure, panels[0, -1]), label="attention weight")
    width, height = figure.get_size_inches()
    figure.supxlabel("key: the item that is read", fontsize=9, y=0.1 / height)
    figure.supylabel("query: the item that reads", fontsize=9, x=0.1 / width)
    _save(figure, title, path)


def draw_gates(gates: Mapping[str, Array], items: Sequence[str], path: Path, *, title: str) -> None:
    """One column for each kind of gate, as PNG, and two panels for each layer: every unit over time, and their mean.

    gates: `[time, unit]` by name, `kind.layer`. Units are sorted by their mean, so that those that are mostly open lie
    together. The band about the mean holds the middle 80% of the units.
    """
    kinds = list(dict.fromkeys(name.partition(".")[0] for name in gates))
    layers = list(dict.fromkeys(name.partition(".")[2] for name in gates))
    num_items = next(iter(gates.values())).shape[0]
    width = max(2.6, _side(num_items, len(kinds)))
    figure, panels = _panels([2.6, 1.0] * len(layers), len(kinds), width, 3 * _GAP)
    for row, layer in enumerate(layers):
        for column, kind in enumerate(kinds):
            units, mean = panels[2 * row, column], panels[2 * row + 1, column]
            name = ".".join(filter(None, (kind, layer)))
            if name in gates:
                _draw_gate(figure, units, mean, gates[name], name)
            else:
                units.set_visible(False)
                mean.set_visible(False)
            units.set_xticks([])
            mean.set(xticks=[], xlim=(-0.5, num_items - 0.5))
        panels[2 * row, 0].set_ylabel("unit, by mean")
        panels[2 * row + 1, 0].set_ylabel("mean")
    for axes in panels[-1]:
        _label(axes.xaxis, items, num_items, width, rotation=90)
    _save(figure, title, path)


def _draw_gate(figure: Figure, units: Any, mean: Any, gate: Array, name: str) -> None:
    # Sigmoid gates are open or shut; what goes in has a sign.
    lowest, colours = (-1, "RdBu") if gate.min() < 0 else (0, "viridis")
    sorted_units = gate[:, gate.mean(0).argsort()].T
    settings = {"vmin": lowest, "vmax": 1, "aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    image = units.imshow(sorted_units, cmap=colours, **settings)
    units.set_title(name, fontsize=9)
    figure.colorbar(image, cax=_beside(figure, units), ticks=[lowest, (lowest + 1) / 2, 1]).ax.tick_params(labelsize=7)
    time = range(len(gate))
    low, high = np.quantile(gate, (0.1, 0.9), axis=1)
    mean.fill_between(time, low, high, alpha=0.2, color="tab:blue", linewidth=0)
    mean.plot(time, gate.mean(1), color="tab:blue", marker=".", markersize=3, linewidth=1)
    mean.set_ylim(lowest - 0.05, 1.05)
    mean.grid(axis="y", alpha=0.3)


def _side(num_items: int, num_panels: int) -> float:
    """Inches of a panel's side: room for every item's label, as far as the whole picture stays within its limit."""
    most = MAX_SIDE / num_panels
    return max(_ITEM * num_items, min(4.0, most)) if _ITEM * num_items < most else max(most, 1.2)


def _panels(heights: Sequence[float], num_columns: int, width: float, gap: float) -> tuple[Figure, Any]:
    """A figure with a grid of panels of these sizes in inches, and `gap` between columns.

    No panels share an axis, and Matplotlib does not lay them out: for hundreds of them either takes a minute.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total_width = _LEFT + num_columns * width + (num_columns - 1) * gap + _RIGHT
    total_height = _BOTTOM + sum(heights) + (len(heights) - 1) * _GAP + _TOP
    figure = Figure(figsize=(total_width, total_height))
    FigureCanvasAgg(figure)
    place = {
        "left": _LEFT / total_width,
        "right": 1 - _RIGHT / total_width,
        "bottom": _BOTTOM / total_height,
        "top": 1 - _TOP / total_height,
        "wspace": gap / width,
        "hspace": _GAP * len(heights) / sum(heights),
    }
    panels = figure.subplots(
        len(heights),
        num_columns,
        squeeze=False,
        height_ratios=heights,
        gridspec_kw=place,
    )
    return figure, panels


def _beside(figure: Figure, axes: Any) -> Any:
    """A narrow panel on the right of another one, for the scale of its colours."""
    box, inch = axes.get_position(), 1 / figure.get_figwidth()
    return figure.add_axes((box.x1 + 0.08 * inch, box.y0, 0.1 * inch, box.height))


def _label(axis: Any, items: Sequence[str], num_items: int, side: float, *, rotation: float = 0) -> None:
    """Name the items along an axis, every one or as many as there is room for; without names, number them."""
    step = math.ceil(0.6 * _ITEM * num_items / side)
    at = list(range(0, num_items, step))
    names = [visible(items[index]) if items else str(index) for index in at]
    # Else text between two dollar signs would be read as a formula.
    axis.set_ticks(at, names, rotation=rotation, fontsize=7, parse_math=False)


def visible(item: str) -> str:
    """The item as a label: blanks can be seen, and it is cut where it is long."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in item.translate(_VISIBLE))
    return shown if len(shown) <= _LONGEST_LABEL else shown[: _LONGEST_LABEL - 1] + "…"


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / figure.get_figheight())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file, warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=DPI)
