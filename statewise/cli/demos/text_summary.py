"""Results of the demo `text`: one record, two tables, one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.table import Table

from statewise.cli.demos.summary import (
    DemoSummary,
    TrainingFigures,
    add_certificate,
    summary_table,
)
from statewise.cli.plot.figure import new_figure

_MARKERS = "osv^D*P"
"""One for each family, so that the picture can be read without its colours."""


class FamilyFigures(BaseModel):
    """One model."""

    training: TrainingFigures
    state_bytes: int
    """Bytes of state that a stream carries from step to step at its longest."""
    state_grows: bool
    """Whether that is with every item, up to `state_bytes`."""
    tokens_per_second: dict[int, float]
    """By number of concurrent streams, through gRPC."""

    @property
    def bits(self) -> float:
        """Held-out bits per character."""
        assert self.training.bits_per_character is not None
        return self.training.bits_per_character


class TextSummary(DemoSummary):
    """`summary.json` of the demo's folder."""

    main: str
    families: list[FamilyFigures]
    """The worst first."""

    @property
    def main_family(self) -> FamilyFigures:
        """The model that was streamed from."""
        return next(family for family in self.families if family.training.name == self.main)


def family_table(summary: TextSummary) -> Table:
    """All models side by side, in 80 columns."""
    first = summary.families[0]
    characters = summary.main_family.training.held_out_characters
    table = Table(
        title=f"Python's documentation, {characters:,} characters held out", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    for title in ("bits/\nchar.", "param-\neters", "state,\nbytes", "training"):
        table.add_column(title, justify="right", no_wrap=True)
    for streams in first.tokens_per_second:
        table.add_column(f"tokens/s\n{_streams(streams)}", justify="right", no_wrap=True)
    table.add_row("(unigram)", f"{first.training.baselines['unigram']:.3f}", style="dim")
    for family in summary.families:
        _add_family(table, family, style="bold green" if family is summary.main_family else "")
    return table


def _add_family(table: Table, family: FamilyFigures, *, style: str) -> None:
    training = family.training
    table.add_row(
        training.name,
        f"{family.bits:.3f}",
        f"{training.parameters:,}",
        f"{'≤ ' if family.state_grows else ''}{family.state_bytes:,}",
        f"{training.seconds:.1f} s" if training.steps else "counted",
        *(f"{speed:,.0f}" for speed in family.tokens_per_second.values()),
        style=style,
    )


def main_table(summary: TextSummary) -> Table:
    """The main model: training, certificate, speed."""
    family, table = summary.main_family, summary_table(summary.main_family.training)
    table.add_row("  held-out bits per character", f"{family.bits:.3f}")
    add_certificate(table, summary.certificate)
    table.add_row("[bold]tokens per second through gRPC[/]", "")
    for streams, speed in family.tokens_per_second.items():
        table.add_row(f"  {_streams(streams)}", f"{speed:,.0f}")
    return table


def draw(summary: TextSummary, path: Path) -> None:
    """Draw bits per character against training time and against parameters, and tokens per second, into a PNG."""
    figure = new_figure(13, 4.5)
    seconds, parameters, speed = figure.subplots(1, 3)
    # Less is no time at all: a table that was counted.
    _scatter(seconds, summary, [max(family.training.seconds, 0.01) for family in summary.families])
    seconds.set(title="Held-out text", xlabel="seconds of training", ylabel="bits per character (lower is better)")
    seconds.legend(frameon=False)
    _scatter(parameters, summary, [family.training.parameters for family in summary.families])
    parameters.set(title="Held-out text", xlabel="parameters")
    _speed_bars(speed, summary)
    for axes in (seconds, parameters, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _scatter(axes: Any, summary: TextSummary, places: list[float]) -> None:
    for family, place, marker in zip(summary.families, places, _MARKERS, strict=False):
        axes.plot(place, family.bits, marker, markersize=8, label=family.training.name)
    unigram = summary.families[0].training.baselines["unigram"]
    axes.axhline(unigram, color="0.7", linestyle="--", label="unigram baseline")
    axes.set(xscale="log")
    axes.margins(x=0.15, y=0.15)


def _speed_bars(axes: Any, summary: TextSummary) -> None:
    counts = list(summary.families[0].tokens_per_second)
    height = 0.8 / len(counts)
    for index, streams in enumerate(counts):
        speeds = [family.tokens_per_second[streams] for family in summary.families]
        places = [row + height * (index - (len(counts) - 1) / 2) for row in range(len(speeds))]
        bars = axes.barh(places, speeds, height, label=_streams(streams))
        axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize="small")
    axes.set_yticks(range(len(summary.families)), [family.training.name for family in summary.families])
    axes.set(title="Streaming through gRPC", xlabel="tokens per second", xticks=[])
    axes.margins(x=0.2)
    axes.legend(frameon=False)


def _streams(number: int) -> str:
    return "1 stream" if number == 1 else f"{number} streams"
