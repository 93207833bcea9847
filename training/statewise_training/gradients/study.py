"""Study of gates: gradients and copying accuracy against distance in time, by family."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from statewise.files import atomic_file, write_atomically
from statewise_training.gradients import copy_task

_COLORS = ("tab:red", "tab:blue", "tab:green", "tab:purple", "tab:brown")
_FLOOR = 1e-12
"""Lower limit of the gradient axis: so small a gradient has no effect."""


@dataclass(frozen=True)
class Settings:
    """Settings of the study's models and their training."""

    distances: tuple[int, ...]
    """Distances, ascending; each trains one model per family."""
    hidden_size: int
    num_steps: int
    seed: int


@dataclass(frozen=True)
class Family:
    """Measurements of one family; gradients are relative to the one a single step back, which comes first."""

    name: str
    num_parameters: int
    accuracy: dict[int, float]
    """Accuracy by distance."""
    gradient_untrained: list[float]
    gradient_trained: list[float]
    """Gradients of the model for the largest distance."""


def measure(
    name: str, settings: Settings, on_step: Callable[[], object], on_model: Callable[[int, float], object]
) -> Family:
    """Train a family for every distance; `on_model` is called with each distance and its accuracy."""
    accuracy = {}
    farthest = settings.distances[-1]
    untrained = copy_task.gradient_norms(
        copy_task.build(name, settings.hidden_size, settings.seed), farthest, settings.seed
    )
    for distance in settings.distances:
        model = copy_task.build(name, settings.hidden_size, settings.seed)
        copy_task.train(model, distance, settings.num_steps, settings.seed, on_step)
        accuracy[distance] = copy_task.measure_accuracy(model, distance, settings.seed)
        on_model(distance, accuracy[distance])
    return Family(
        name,
        sum(parameter.numel() for parameter in model.module.parameters()),
        accuracy,
        untrained,
        copy_task.gradient_norms(model, farthest, settings.seed),
    )


def write_json(families: Sequence[Family], settings: Settings, path: Path) -> None:
    """Write the numbers that the picture shows."""
    content = {
        "task": "copy",
        "num_symbols": copy_task.NUM_SYMBOLS,
        **asdict(settings),
        "families": [asdict(family) for family in families],
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def draw(families: Sequence[Family], settings: Settings, path: Path) -> None:
    """Draw two panels as PNG: gradient norm against distance, accuracy against distance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    gradient, accuracy = figure.subplots(1, 2)
    for index, family in enumerate(families):
        color = _COLORS[index % len(_COLORS)]
        _draw_gradients(gradient, family, color)
        # Families that solve the task coincide: each later line is narrower, so that all stay visible.
        width = max(4.5 - 1.5 * index, 1.0)
        points = list(family.accuracy), list(family.accuracy.values())
        accuracy.plot(*points, marker="o", ms=4 + 1.5 * width, lw=width, color=color, label=family.name.upper())
    _finish_gradients(gradient, settings)
    _finish_accuracy(accuracy, settings)
    figure.supxlabel(_caption(settings), fontsize=9, color="0.3")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_gradients(axes: Any, family: Family, color: str) -> None:
    curves = ((family.gradient_trained, "-", "trained"), (family.gradient_untrained, ":", "untrained"))
    for norms, line, when in curves:
        steps = range(1, len(norms) + 1)
        axes.plot(steps, norms, linestyle=line, lw=2, color=color, label=f"{family.name.upper()}, {when}")


def _finish_gradients(axes: Any, settings: Settings) -> None:
    axes.set_yscale("log", nonpositive="clip")
    axes.set(
        title="How much of the gradient comes back",
        xlabel="distance d (steps back)",
        ylabel="gradient norm of the state d steps back,\nrelative to one step back (log scale)",
    )
    # Leave room for the legend above the curves.
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, _FLOOR), 100 * top)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", ncols=3, fontsize="small")


def _finish_accuracy(axes: Any, settings: Settings) -> None:
    axes.axhline(copy_task.CHANCE, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xticks(settings.distances, [str(distance) for distance in settings.distances])
    axes.minorticks_off()
    axes.set(
        title="How far back the symbol is told",
        xlabel="distance d (blanks after the symbol; log scale)",
        ylabel="accuracy on fresh sequences",
        ylim=(0, 1.05),
    )
    axes.grid(alpha=0.3)
    axes.legend()


def _caption(settings: Settings) -> str:
    return (
        f"Copy task: one of {copy_task.NUM_SYMBOLS} symbols, then d blanks, then the symbol is asked for. "
        f"For each d a model of its own, trained on distances 1 to d: {settings.num_steps:,} steps, "
        f"hidden size {settings.hidden_size}, seed {settings.seed}.\n"
        f"Left: the models for d = {settings.distances[-1]}; the gradient is of the right symbol's logit."
    )
