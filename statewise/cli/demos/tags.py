"""Demo `tags`: a bidirectional GRU tags the characters of Python source code as `tokenize` does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from statewise.cli.demos.summary import (
    CertificateFigures,
    DemoSummary,
    TrainingFigures,
    add_certificate,
    report,
    summary_table,
)
from statewise.cli.demos.tagged_code import OUTSIDE, TAGS, Module, standard_library, tag_of_each, write_tagged
from statewise.cli.demos.work import Work, certificate_of
from statewise.cli.plot.figure import new_figure
from statewise.client import Client, Prediction

NAME = "tags"
MAX_POSITIONS = 2048
SIZES = range(4_000, 40_000)
SNIPPET = '''\
def area(radius, *, pi=3.14159):  # of a circle
    """A docstring with the words if and for in it."""
    if radius < 0:
        raise ValueError(f"not a radius: {radius}")
    return pi * radius ** 2  # "not a string"
'''
STYLES = {"comment": "dim", "keyword": "bold magenta", "number": "cyan", "operator": "yellow", "string": "green"}


class TagFigures(BaseModel):
    """Figures of one tag on modules that training has not seen."""

    precision: float
    recall: float
    f1: float
    characters: int


class TagsSummary(DemoSummary):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    modules: list[str]
    """Held-out modules."""
    accuracy: float
    """Share of the held-back characters that the server tagged as `tokenize` does."""
    macro_f1: float
    baseline: float
    """The same share where every character gets the tag that it mostly has."""
    tags: dict[str, TagFigures]
    confusion: list[list[int]]
    """Counts of true tags (row) by predicted ones (column)."""
    characters_per_second: float
    """All of them in one request after another."""


def run(work: Work) -> None:
    """Tag the standard library, train, export, serve, predict."""
    work.heading("1/5  data")
    train, held_back = _modules(work)
    work.heading("2/5  train")
    work.train(_configuration(work))
    work.heading("3/5  export and certify")
    (bundle,) = work.export(NAME)
    work.heading("4/5  serve")
    with work.serve() as server, Client(server.address, timeout=60) as client:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        work.heading("5/5  predict")
        work.console.print(_colored(SNIPPET, client.predict(NAME, [SNIPPET])[0]))
        confusion, seconds = _tag(client, held_back)
    picture = work.folder / "tags.png"
    summary = TagsSummary(
        training=TrainingFigures.of_run(work.run_folder(NAME)),
        certificate=CertificateFigures.of(certificate_of(bundle)),
        modules=[name for name, _ in held_back],
        **_figures(confusion),
        baseline=_baseline(train, held_back),
        characters_per_second=float(confusion.sum()) / seconds,
        reused=work.reused,
        bundle=bundle.folder.absolute(),
        pictures=[(work.run_folder(NAME) / "loss.png").absolute(), picture.absolute()],
    )
    _draw(summary, picture)
    work.write_summary(summary)
    _report(summary, work)


def _modules(work: Work) -> tuple[list[Module], list[Module]]:
    """Modules to train on, which are written to a file, and modules that are held back."""
    modules = standard_library(SIZES)
    held_back = modules[::10]
    train = [module for module in modules if module not in held_back]
    if work.fast:
        held_back, train = held_back[:1], train[:8]
    file = work.folder / "train.jsonl"
    write_tagged(file, train)
    characters = sum(len(source) for _, source in train)
    work.console.print(
        f"{len(train)} modules of the standard library, {characters:,} characters, tagged by tokenize: "
        f"{os.path.relpath(file)}; held back: {', '.join(name for name, _ in held_back)}"
    )
    return train, held_back


def _configuration(work: Work) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "name": NAME,
        "plugin": "gru_encoder",
        "model": {"hidden_size": 64, "num_layers": 2, "embedding_size": 32, "max_positions": MAX_POSITIONS},
        "data": {
            "kind": "labelled",
            "files": os.path.relpath(work.folder / "train.jsonl"),
            "target": "tags",
            "outside": OUTSIDE,
            "held_out": 0.05,
        },
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"kind": "cosine", "warmup_steps": 30},
        "trainer": {"max_steps": 240, "validation_every": 80, "batch_size": 16, "sequence_length": 256},
    }
    if work.fast:
        configuration["model"] |= {"hidden_size": 12, "num_layers": 1}
        configuration["data"]["held_out"] = 0.2
        configuration["trainer"] = {"max_steps": 4, "batch_size": 4, "sequence_length": 64}
    return configuration


def _tag(client: Client, modules: Sequence[Module]) -> tuple[NDArray[np.int64], float]:
    """Count true tags (row) by predicted ones (column), and the seconds that it took."""
    confusion = np.zeros((len(TAGS), len(TAGS)), np.int64)
    seconds = 0.0
    for _, source in modules:
        pieces = list(_pieces(source))
        started = time.perf_counter()
        predictions = client.predict(NAME, pieces)
        seconds += time.perf_counter() - started
        predicted = [TAGS.index(tag.label) for prediction in predictions for tag in prediction.tags or ()]
        pairs = tag_of_each(source) * len(TAGS) + np.array(predicted)
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    return confusion, seconds


def _pieces(source: str) -> Iterator[str]:
    """The source in parts that the model takes, cut between lines."""
    start = 0
    while start < len(source):
        end = min(start + MAX_POSITIONS, len(source))
        if end < len(source):
            end = source.rfind("\n", start, end) + 1 or end
        yield source[start:end]
        start = end


def _figures(confusion: NDArray[np.int64]) -> dict[str, Any]:
    right, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * right / (actual + predicted).clip(min=1)
    tags = {
        tag: TagFigures(
            precision=right[index] / max(predicted[index], 1),
            recall=right[index] / max(actual[index], 1),
            f1=f1[index],
            characters=actual[index],
        )
        for index, tag in enumerate(TAGS)
    }
    accuracy = right.sum() / confusion.sum()
    return {"accuracy": accuracy, "macro_f1": f1.mean(), "tags": tags, "confusion": confusion.tolist()}


def _baseline(train: Sequence[Module], held_back: Sequence[Module]) -> float:
    """Accuracy where every character gets the tag that it mostly has in the training part."""
    counts = np.zeros((128, len(TAGS)), np.int64)
    for _, source in train:
        np.add.at(counts, (_codes(source), tag_of_each(source)), 1)
    mostly = counts.argmax(axis=1)
    right = [mostly[_codes(source)] == tag_of_each(source) for _, source in held_back]
    return float(np.concatenate(right).mean())


def _codes(source: str) -> NDArray[np.int64]:
    """Every character's number, 127 for all that are not ASCII."""
    return np.frombuffer(source.encode("utf-32-le"), np.uint32).clip(max=127).astype(np.int64)


def _colored(source: str, prediction: Prediction) -> Text:
    text = Text(source)
    for tag in prediction.tags or ():
        text.stylize(STYLES.get(tag.label, ""), tag.start or 0, tag.end)
    return text


def _report(summary: TagsSummary, work: Work) -> None:
    commands = (f"serve --models {work.models}", f"predict {NAME} 'if x: return 1  # one'")
    report(work.console, summary, [_table(summary)], commands)


def _table(summary: TagsSummary) -> Table:
    table = summary_table(summary.training)
    add_certificate(table, summary.certificate)
    characters = sum(figures.characters for figures in summary.tags.values())
    table.add_row("[bold]modules held back[/]", f"{len(summary.modules)}, {characters:,} characters")
    table.add_row("  tagged rightly by the server", f"{summary.accuracy:.1%}", style="bold green")
    table.add_row("  by each character's most frequent tag", f"{summary.baseline:.1%}")
    table.add_row("  characters per second through gRPC", f"{summary.characters_per_second:,.0f}")
    table.add_row("[bold]F1 by tag[/]", f"{summary.macro_f1:.3f} (mean)")
    for tag, figures in summary.tags.items():
        table.add_row(f"  {tag}", f"{figures.f1:.3f}", style=STYLES.get(tag, ""))
    return table


def _draw(summary: TagsSummary, path: Path) -> None:
    """Draw which tag was taken for which, as shares of the row, into a PNG."""
    figure = new_figure(7, 6)
    axes = figure.subplots()
    counts = np.array(summary.confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            axes.text(column, row, f"{share:.3f}", ha="center", va="center", color="w" if share > 0.5 else "k")
    axes.set(title=f"Accuracy {summary.accuracy:.1%} on held-back modules", xlabel="predicted", ylabel="tokenize")
    axes.set_xticks(range(len(TAGS)), TAGS)
    axes.set_yticks(range(len(TAGS)), TAGS)
    figure.savefig(path, format="png", dpi=120)
