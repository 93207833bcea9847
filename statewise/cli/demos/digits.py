"""Demo `digits`: a Vision Transformer, a plugin from outside, reads the handwritten digits that scikit-learn ships."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from rich.table import Table

import statewise
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
from statewise.cli.plot.figure import new_figure
from statewise.client import Client
from statewise.errors import ConfigError
from statewise.plugins import available_plugins

NAME = "digits"
PLUGIN = "vit"
AT_ONCE = 60
"""Pictures in one request."""
PACKAGE = Path(statewise.__file__).parents[1] / "examples" / "plugin_vit"


class DigitsSummary(DemoSummary):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    accuracy: float
    """Share of the held-back pictures that the server named rightly."""
    confusion: list[list[int]]
    """Counts of true digits (row) by predicted ones (column)."""
    predictions_per_second: float
    """Rate over the held-out pictures, one request after another."""
    scikit_learn: str
    """Its version, which is the data's."""


def run(work: Work) -> None:
    """Install the plugin for this demo alone, train, export, serve, predict."""
    work.heading("1/5  plugin and data")
    _install(work)
    work.python("statewise_vit.digits", str(work.folder))
    work.heading("2/5  train")
    work.train(_configuration(work))
    work.heading("3/5  export and certify")
    (bundle,) = work.export(NAME)
    work.heading("4/5  serve")
    with np.load(work.folder / "test.npz") as test:
        items, labels = test["items"], test["labels"].astype(int)
    with work.serve() as server:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        work.heading("5/5  predict")
        predicted, seconds = _predict(server, items)
    work.console.print(f"{len(items)} held-back pictures in {seconds * 1000:.0f} ms")
    (work.folder / "test.jsonl").write_text("".join(f"{json.dumps(picture)}\n" for picture in items[:20].tolist()))
    picture = work.folder / "digits.png"
    summary = DigitsSummary(
        training=TrainingFigures.of_run(work.run_folder(NAME)),
        certificate=CertificateFigures.of(certificate_of(bundle)),
        accuracy=float((predicted == labels).mean()),
        confusion=_confusion(labels, predicted).tolist(),
        predictions_per_second=len(items) / seconds,
        scikit_learn=sklearn.__version__,
        reused=work.reused,
        bundle=bundle.folder.absolute(),
        pictures=[(work.run_folder(NAME) / "loss.png").absolute(), picture.absolute()],
    )
    _draw(summary, items, labels, predicted, picture)
    work.write_summary(summary)
    _report(summary, work)


def _install(work: Work) -> None:
    """Put the plugin's package into the demo's folder, where no other program finds it, unless it is installed."""
    if PLUGIN in available_plugins():
        work.console.print(f"plugin {PLUGIN} is installed")
        return
    if not PACKAGE.is_dir():
        raise ConfigError(
            f"demo digits trains the plugin {PLUGIN}, which is not installed; it is in examples/plugin_vit of "
            "Statewise's repository: pip install ./examples/plugin_vit"
        )
    packages, source = work.folder / "packages", work.folder / "plugin_vit"
    shutil.rmtree(packages, ignore_errors=True)
    # pip builds beside the source, which is left as it is.
    shutil.copytree(PACKAGE, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    work.python("pip", "install", *offline, "--target", str(packages), str(source))
    path = os.environ.get("PYTHONPATH")
    work.environment["PYTHONPATH"] = os.pathsep.join([str(packages.absolute()), *([path] if path else [])])


def _configuration(work: Work) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "name": NAME,
        "plugin": PLUGIN,
        "model": {
            "hidden_size": 64,
            "num_layers": 3,
            "num_heads": 4,
            "max_positions": 16,
            "dropout": 0.1,
            "noise": 0.15,
        },
        "data": {"kind": "labelled", "files": os.path.relpath(work.folder / "train.npz")},
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.05},
        "schedule": {"kind": "cosine", "warmup_steps": 50},
        "trainer": {"max_epochs": 30, "batch_size": 64, "sequence_length": 16},
    }
    if work.fast:
        configuration["model"] |= {"hidden_size": 16, "num_layers": 1}
        configuration["trainer"] = {"max_steps": 4, "batch_size": 32, "sequence_length": 16}
    return configuration


def _predict(server: Serving, items: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
    """The digits that the server sees in sequences of patches `[n, patch, features]`, and the seconds that it took."""
    with Client(server.address, timeout=60) as client:
        client.predict(NAME, list(items[:1]))
        started = time.perf_counter()
        requests = [list(items[first : first + AT_ONCE]) for first in range(0, len(items), AT_ONCE)]
        predictions = [prediction for request in requests for prediction in client.predict(NAME, request)]
        seconds = time.perf_counter() - started
    return np.array([int(prediction.label or "") for prediction in predictions]), seconds


def _confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _report(summary: DigitsSummary, work: Work) -> None:
    commands = (f"serve --models {work.models}", f"predict {NAME} --file {work.folder / 'test.jsonl'}")
    report(work.console, summary, [_table(summary)], commands)


def _table(summary: DigitsSummary) -> Table:
    table = summary_table(summary.training)
    add_certificate(table, summary.certificate)
    table.add_row("[bold]held-back pictures[/]", f"{sum(map(sum, summary.confusion))}")
    table.add_row("  named rightly by the server", f"{summary.accuracy:.1%}", style="bold green")
    table.add_row("  pictures per second through gRPC", f"{summary.predictions_per_second:,.0f}")
    return table


def _draw(
    summary: DigitsSummary,
    items: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    path: Path,
) -> None:
    """Draw the confusions, and pictures, the mistaken ones first, into a PNG."""
    figure = new_figure(11, 5)
    parts: Any = figure.subfigures(1, 2)
    left, right = parts
    axes = left.subplots()
    axes.imshow(np.array(summary.confusion), cmap="Blues")
    for row, counts in enumerate(summary.confusion):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color="w" if row == column else "k")
    axes.set(title=f"Accuracy {summary.accuracy:.1%}", xlabel="predicted", ylabel="digit")
    axes.set(xticks=range(10), yticks=range(10))
    # The mistaken ones first.
    order = np.argsort(predicted == labels, kind="stable")[:20]
    for place, index in zip(right.subplots(4, 5).flat, order, strict=True):
        place.imshow(_image(items[index]), cmap="gray_r")
        color = "tab:green" if predicted[index] == labels[index] else "tab:red"
        place.set_title(f"{labels[index]}: {predicted[index]}", color=color, fontsize="small")
        place.set_axis_off()
    right.suptitle("digit: prediction")
    figure.savefig(path, format="png", dpi=120)


def _image(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture `[8, 8]` that patches `[16, 4]` were cut from."""
    return patches.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)
