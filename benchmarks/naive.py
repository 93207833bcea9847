"""Time saved by state: one more token by reading the whole history again, against one more token from the state.

    python -m benchmarks.naive [--family gru --positions 1024 --rounds 7]

The naive loop carries no state, so every token costs more than the previous one, and a sequence of n tokens takes
n^2 / 2 steps. Both columns use the same weights in PyTorch and give the same output.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

VOCABULARY = 1000
FAMILIES: dict[str, dict[str, Any]] = {
    "markov": {},
    "autoregressive": {"window": 16, "embedding_size": 64, "hidden_sizes": [512]},
    "gru": {"hidden_size": 512, "num_layers": 2},
    "lstm": {"hidden_size": 512, "num_layers": 2},
    "transformer": {"hidden_size": 256, "num_layers": 4, "num_heads": 4},
}

TOLERANCE = 1e-3
"""Tolerance between the outputs of both ways, which differ only by rounding."""


@dataclass(frozen=True)
class Point:
    """Time of one token, in milliseconds, and of the whole sequence up to it."""

    position: int
    """Number of items before the new one."""
    naive: float
    state: float
    naive_total: float = 0.0
    state_total: float = 0.0


def run(
    family: Annotated[list[str], typer.Option(help=f"Families, of {', '.join(FAMILIES)}.")] = ["gru", "transformer"],  # noqa: B006 - Typer's way
    positions: Annotated[int, typer.Option(min=2, help="Longest history; shorter ones are its halves.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each, taking turns; the median counts.")] = 7,
    output: Annotated[Path, typer.Option(help="Folder for naive.json and naive.png.")] = Path("benchmarks"),
) -> None:
    """Measure the time of one more token at rising positions, with state and without, batch 1, greedy."""
    unknown = sorted(set(family) - FAMILIES.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(FAMILIES)}", param_hint="--family")
    console = Console()
    results = {}
    for name in family:
        results[name] = _add_totals(_measure(name, positions, rounds))
        console.print(_table(name, results[name]))
    points = {name: [asdict(point) for point in found] for name, found in results.items()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "naive.json").write_text(json.dumps(points, indent=1) + "\n")
    _plot(results, output / "naive.png")
    console.print(f"Figures: {output / 'naive.json'}, picture: {output / 'naive.png'}")


def _measure(family: str, longest: int, rounds: int) -> list[Point]:
    import torch

    from statewise.plugins import load_plugin

    plugin = load_plugin(family)
    limit = {"max_positions": longest + 1} if family == "transformer" else {}
    config = plugin.config_class.model_validate({"vocabulary_size": VOCABULARY, **FAMILIES[family], **limit})
    torch.manual_seed(0)
    module, spec = plugin.build(config).eval(), plugin.spec(config)
    history = torch.randint(VOCABULARY, (1, longest + 1))
    with torch.inference_mode():
        return [
            _point(module, spec, history[:, : position + 1], rounds)
            for position in track(_halves(longest), family, transient=True)
        ]


def _halves(longest: int) -> list[int]:
    positions = [longest]
    while positions[0] > 1:
        positions.insert(0, positions[0] // 2)
    return positions


def _point(module: nn.Module, spec: Any, items: Tensor, rounds: int) -> Point:
    """Measure the last item, with the whole history and with the state after it."""
    import torch

    from statewise_training.families.shared.state import zero_state

    def outputs(new: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, new_state = module(new, torch.tensor([new.shape[1]]), state)
        return module.head(hidden[:, -1]), new_state

    count = items.shape[1]
    _, state = outputs(items[:, :-1], zero_state(spec, 1, count))
    ways = (lambda: outputs(items, zero_state(spec, 1, count))[0], lambda: outputs(items[:, -1:], state)[0])
    naive, stateful = (way() for way in ways)
    if not torch.allclose(naive, stateful, atol=TOLERANCE):
        raise SystemExit(f"with state and without, outputs differ by {(naive - stateful).abs().max():.2e}")
    times = [[_milliseconds(way) for way in ways] for _ in range(rounds)]
    return Point(count - 1, *(median(column) for column in zip(*times, strict=True)))


def _milliseconds(way: Callable[[], object]) -> float:
    """Time of one call, as the mean of enough calls to be measurable."""
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < 0.02:
        way()
        calls += 1
    return 1e3 * (time.perf_counter() - started) / calls


def _add_totals(points: list[Point]) -> list[Point]:
    """Add to each point the time of all tokens up to it, interpolating linearly between points."""
    totals, before, done = [0.0, 0.0], (points[0].naive, points[0].state), 0
    summed = []
    for point in points:
        now = (point.naive, point.state)
        totals = [
            total + (point.position - done) * (a + b) / 2 for total, a, b in zip(totals, before, now, strict=True)
        ]
        summed.append(Point(point.position, *now, *totals))
        before, done = now, point.position
    return summed


def _table(family: str, points: list[Point]) -> Table:
    table = Table(title=f"{family}: milliseconds for one more token, batch 1")
    for column in ("items before it", "naive", "with state", "naive / state", "sequence so far, naive", "with state"):
        table.add_column(column, justify="right")
    for p in points:
        totals = (f"{total / 1e3:.2f} s" for total in (p.naive_total, p.state_total))
        table.add_row(f"{p.position:,}", f"{p.naive:.2f}", f"{p.state:.2f}", f"{p.naive / p.state:.1f}", *totals)
    return table


def _plot(results: dict[str, list[Point]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (family, points) in enumerate(results.items()):
        positions = [point.position for point in points]
        for way, style in (("naive", "--"), ("state", "-")):
            label = f"{family}, {'whole history' if way == 'naive' else 'with state'}"
            times = [getattr(point, way) for point in points]
            axes.plot(positions, times, style, color=f"C{number}", marker="o", markersize=4, label=label)
    axes.set(title="One more token, batch 1", xlabel="items before it", ylabel="milliseconds")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(run)
