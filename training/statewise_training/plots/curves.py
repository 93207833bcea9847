"""Log of a run, merged from its attempts, and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from statewise.files import atomic_file, write_atomically

Row = dict[str, float]

COLUMNS = ("step", "train_loss", "validation_loss", "validation_accuracy", "learning_rate")


def collect(logs: Path) -> list[Row]:
    """Collect rows by step from the logs of all attempts; for a repeated step, the later attempt's."""
    rows: dict[int, Row] = {}
    attempts = sorted(
        logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.removeprefix("version_"))
    )
    for path in attempts:
        attempt: dict[int, Row] = {}
        for record in csv.DictReader(io.StringIO(path.read_text())):
            values = {name: float(record[name]) for name in COLUMNS if record.get(name)}
            # Lightning counts from 0; here the step is the number of updates so far.
            values["step"] += 1
            attempt.setdefault(int(values["step"]), {}).update(values)
        first = min(attempt, default=0)
        rows = {step: row for step, row in rows.items() if step < first} | attempt if attempt else rows
    return [rows[step] for step in sorted(rows)]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one row per logged step; values not measured there are empty, and only labels have accuracy."""
    text = io.StringIO()
    columns = [name for name in COLUMNS if name != "validation_accuracy" or any(name in row for row in rows)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": int(row["step"])} for row in rows)
    write_atomically(path, text.getvalue())


def plot(rows: Sequence[Row], path: Path, *, title: str, unit: str, best_step: int) -> None:
    """Plot training and validation loss over the steps, and accuracy for labels, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    accuracy = _curve(rows, "validation_accuracy")
    panels = 2 if accuracy[0] else 1
    figure = Figure(figsize=(8, 4.5 if panels == 1 else 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, *others = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    train, validation = _curve(rows, "train_loss"), _curve(rows, "validation_loss")
    axes.plot(*train, color="tab:blue", alpha=0.6, linewidth=1, label="training (one batch)")
    axes.plot(*validation, color="tab:orange", marker="o", markersize=4, label="validation (held out)")
    if best_step in validation[0]:
        best = validation[1][validation[0].index(best_step)]
        axes.annotate(f"best: {best:.3f}", (best_step, best), (0, 12), textcoords="offset points", ha="right")
    axes.set(title=title, xlabel="step", ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    axes.legend()
    for below in others:
        below.plot(*accuracy, color="tab:green", marker="o", markersize=4)
        below.set(xlabel="step", ylabel="accuracy (held out)")
        below.grid(alpha=0.3)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _curve(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    points = [(int(row["step"]), row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]
