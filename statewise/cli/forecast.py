"""`statewise forecast`: continues a series from a file with a model of a running server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from statewise.cli.generate import Address
from statewise.cli.plot.fan import LEVELS, draw_fan
from statewise.client import DEFAULT_ADDRESS, Client, Forecast
from statewise.errors import ConfigError
from statewise.extras import require
from statewise.series import Series, read_series

_SHOWN = 12
"""Items of a long forecast that are printed."""


def forecast(
    model: Annotated[str, typer.Argument(help="Name of the model, as `statewise models` gives it.")],
    file: Annotated[Path, typer.Option(help="The series so far: .csv, .npy or .npz, the oldest first.")],
    horizon: Annotated[int, typer.Option(help="Items to forecast.")],
    columns: Annotated[str | None, typer.Option(help='Columns of the .csv to read, as "high,low".')] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Read the last N items only.")] = None,
    paths: Annotated[int | None, typer.Option(help="Paths to sample; 100 where absent.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 1 spreads the paths further.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same paths.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a PNG of the median and the 50% and 90% bands.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Forecast a series with a mixture model of a running server."""
    names = [name.strip() for name in columns.split(",")] if columns else None
    if plot is not None:
        require("plot")
    series = read_series(file, names)[-last if last else 0 :]
    started = time.monotonic()
    with Client(address) as client:
        answer = client.forecast(
            model, series, horizon, num_paths=paths, quantiles=LEVELS, temperature=temperature, seed=seed
        )
    seconds = time.monotonic() - started
    if plot is not None:
        _draw(series[-4 * horizon :], answer, plot, names)
    if as_json:
        print(json.dumps(_as_dict(answer)))
        return
    console = Console()
    console.print(_table(answer, names))
    info = answer.info
    console.print(
        f"[{info.model}/{info.version} {info.variant}] {horizon} items after {len(series)} in {seconds:.2f} s, "
        f"seed {answer.seed}" + (f"; {plot}" if plot else ""),
        markup=False,
    )


def _draw(history: Series, answer: Forecast, path: Path, names: list[str] | None) -> None:
    try:
        draw_fan(history, answer, path, names=names)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}") from error


def _as_dict(answer: Forecast) -> dict[str, object]:
    info = answer.info
    return {
        "levels": [round(level, 6) for level in answer.levels],
        "quantiles": answer.quantiles.tolist(),
        "mean": answer.mean.tolist(),
        "seed": answer.seed,
        "info": {"model": info.model, "version": info.version, "variant": info.variant},
    }


def _table(answer: Forecast, names: list[str] | None) -> Table:
    """Some items evenly over the horizon, a row for each item and feature."""
    table = Table("item", "feature", *(f"{level:.0%}" for level in LEVELS), "mean")
    horizon, num_features = answer.mean.shape
    for item in np.unique(np.linspace(0, horizon - 1, min(horizon, _SHOWN)).round().astype(int)):
        for feature in range(num_features):
            numbers = [*answer.quantiles[:, item, feature], answer.mean[item, feature]]
            name = names[feature] if names else str(feature)
            table.add_row(str(item + 1), name, *(f"{number:.6g}" for number in numbers))
    return table
