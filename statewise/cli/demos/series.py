"""Demo `series`: the weather of Seattle, day by day, and how likely it is to go on in which way.

The highest and the lowest temperature of every day of 2012 to 2015, as observed, which vega_datasets ships. Three years
are learned from; of the last one, which nothing has seen, two weeks are forecast again and again.
"""

from __future__ import annotations

import csv
import os
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from statewise.cli.demos.processes import Serving
from statewise.cli.demos.summary import (
    CertificateFigures,
    DemoSummary,
    TrainingFigures,
    add_certificate,
    report,
    summary_table,
)
from statewise.cli.demos.work import Work, certificate_of
from statewise.cli.plot.fan import LEVELS, draw_fan
from statewise.client import Client, Forecast

NAME = "seattle"
PACKAGE = "vega_datasets"
FEATURES = {"temp_max": "highest, °C", "temp_min": "lowest, °C"}

NUM_LEARNED = 1096
"""Days of 2012, 2013 and 2014."""
CONTEXT, HORIZON = 90, 14
NUM_SHIFTS = 6
NUM_PATHS = 300
SHOWN = "2015/05/20"
"""The first day of the forecast in the picture."""

Days = NDArray[np.float32]


class SeriesSummary(DemoSummary):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    num_forecasts: int
    """Of `horizon` days each, all in the last year."""
    horizon: int
    coverage: dict[str, float]
    """Share of that year's temperatures inside the bands in which 50% and 90% of the paths lie."""
    error: float
    """Mean distance of the median from what came, in degrees."""
    error_of_last_day: float
    """The same of a forecast that says that all days will be as the last one."""
    seconds_per_forecast: float
    """Of 300 paths, through gRPC."""
    vega_datasets: str
    """Its version, which is the data's."""


def run(work: Work) -> None:
    """Train, export, serve, forecast."""
    dates, days = _read_weather()
    work.heading("1/4  train")
    work.train(_configuration(work, _write_shifts(work.folder, days[:NUM_LEARNED])))
    work.heading("2/4  export and certify")
    (bundle,) = work.export(NAME)
    work.heading("3/4  serve")
    starts = range(NUM_LEARNED, len(days) - HORIZON + 1, 40 if work.fast else 2)
    with work.serve(max_rows=64) as server:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        work.heading("4/4  forecast")
        picture = _draw(work, server, dates, days)
        started = time.perf_counter()
        forecasts = _forecast(server, days, starts)
        seconds = time.perf_counter() - started
    work.console.print(f"{len(starts)} forecasts of {NUM_PATHS} paths x {HORIZON} days in {seconds:.1f} s")
    truth = np.stack([days[start : start + HORIZON] for start in starts])
    last = np.stack([days[start - 1 : start] for start in starts])
    summary = SeriesSummary(
        training=TrainingFigures.of_run(work.run_folder(NAME)),
        certificate=CertificateFigures.of(certificate_of(bundle)),
        num_forecasts=len(starts),
        horizon=HORIZON,
        coverage={"50%": _coverage(forecasts, truth, 1, 3), "90%": _coverage(forecasts, truth, 0, 4)},
        error=float(np.abs(forecasts[:, 2] - truth).mean()),
        error_of_last_day=float(np.abs(last - truth).mean()),
        seconds_per_forecast=seconds / len(starts),
        vega_datasets=version(PACKAGE),
        reused=work.reused,
        bundle=bundle.folder.absolute(),
        pictures=[(work.run_folder(NAME) / "loss.png").absolute(), picture.absolute()],
    )
    work.write_summary(summary)
    _report(summary, work)


def _read_weather() -> tuple[list[str], Days]:
    """Dates, and temperatures `[day, feature]`."""
    spec = find_spec(PACKAGE)  # its import would import pandas, which is not needed
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    file = Path(spec.submodule_search_locations[0]) / "_data" / "seattle-weather.csv"
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    return [row["date"] for row in rows], np.array([[row[name] for name in FEATURES] for row in rows], np.float32)


def _write_shifts(folder: Path, days: Days) -> list[str]:
    """The days as series that begin one after another, so that the chunks of training begin in every season."""
    files = []
    for shift in range(0, CONTEXT, CONTEXT // NUM_SHIFTS):
        file = folder / f"days-from-{shift}.csv"
        with file.open("w", newline="") as text:
            csv.writer(text).writerows([list(FEATURES), *days[shift:].tolist()])
        files.append(os.path.relpath(file))
    return files


def _configuration(work: Work, files: list[str]) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "name": NAME,
        "plugin": "gru",
        "model": {"hidden_size": 16, "head": {"kind": "mixture", "components": 2, "covariance": "full"}},
        "data": {"kind": "series", "files": files, "standardize": True, "held_out": 0.2},
        "optimizer": {"learning_rate": 3e-3},
        "trainer": {"max_steps": 240, "validation_every": 20, "batch_size": 8, "sequence_length": CONTEXT},
    }
    if work.fast:
        configuration["trainer"] |= {"max_steps": 4, "validation_every": 2}
    return configuration


def _forecast(server: Serving, days: Days, starts: range) -> NDArray[np.float32]:
    """Quantiles `[start, level, day, feature]`, each of what follows the days before its start."""
    with Client(server.address, timeout=60) as client:
        return np.stack([_ask(client, days, start).quantiles for start in starts])


def _ask(client: Client, days: Days, start: int) -> Forecast:
    context = days[start - CONTEXT : start]
    return client.forecast(NAME, context, HORIZON, num_paths=NUM_PATHS, quantiles=LEVELS, seed=start)


def _coverage(quantiles: NDArray[np.float32], truth: Days, low: int, high: int) -> float:
    return float(((quantiles[:, low] <= truth) & (truth <= quantiles[:, high])).mean())


def _draw(work: Work, server: Serving, dates: list[str], days: Days) -> Path:
    """The forecast from one day on, beside what came."""
    start, path = next(place for place, date in enumerate(dates) if date.startswith(SHOWN)), work.folder / "fan.png"
    with Client(server.address, timeout=60) as client:
        forecast = _ask(client, days, start)
    history, truth = days[start - 4 * HORIZON : start], days[start : start + HORIZON]
    draw_fan(history, forecast, path, names=list(FEATURES.values()), truth=truth)
    return path


def _report(summary: SeriesSummary, work: Work) -> None:
    file = work.folder / "days-from-0.csv"
    commands = (
        f"serve --models {work.models}",
        f"forecast {NAME} --file {file} --last {CONTEXT} --horizon {HORIZON} --plot fan.png",
    )
    report(work.console, summary, [_table(summary)], commands)


def _table(summary: SeriesSummary) -> Table:
    training, table = summary.training, summary_table(summary.training)
    table.add_row("  held-out negative log-likelihood", f"{training.validation_loss:.3f} nats per day")
    for name, title in (("random_walk", "a random walk"), ("gaussian", "one Gaussian for all days")):
        table.add_row(f"    of {title}", f"{training.baselines[name]:.3f}")
    add_certificate(table, summary.certificate)
    table.add_row("[bold]forecasts of 2015[/]", f"{summary.num_forecasts} of {summary.horizon} days")
    for band, share in summary.coverage.items():
        table.add_row(f"  inside the band of {band}", f"{share:.1%}", style="bold green")
    table.add_row("  mean error of the median", f"{summary.error:.2f} °C")
    table.add_row("    of the last day's temperatures", f"{summary.error_of_last_day:.2f} °C")
    table.add_row(f"  time for {NUM_PATHS} paths", f"{summary.seconds_per_forecast * 1000:.0f} ms")
    return table
