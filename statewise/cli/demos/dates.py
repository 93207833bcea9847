"""Demo `dates`: an encoder-decoder reads dates in many languages and writes them as ISO 8601."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import babel
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from statewise.cli.demos.dates_data import HELD_OUT_STYLE, Dates, Pair, make_dates
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
from statewise.client import AsyncClient

NAME = "dates"
STREAMS = 32
BEAMS = 4
MAX_MISTAKES = 8


class Share(BaseModel):
    """Number of dates that are exactly right."""

    exact: int
    asked: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], answers: Sequence[str]) -> Share:
        """Count answers that are their pair's target."""
        return cls(exact=sum(p.target == a for p, a in zip(pairs, answers, strict=True)), asked=len(pairs))

    def __str__(self) -> str:
        return f"{self.exact / self.asked:.1%} of {self.asked:,}"


class DatesSummary(DemoSummary):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    held_out_days: Share
    """Days that were not learnt from, in styles that were; all of this by the server, decoding greedily."""
    held_out_days_beams: Share
    """The same by beam search."""
    held_out_style: Share
    """A style of a language that was not learnt from."""
    by_language: dict[str, Share]
    """Held-out days by language."""
    dates_per_second: float
    """Through gRPC, so many at once as STREAMS says."""
    babel: str
    """Its version, which is the data's."""


def run(work: Work) -> None:
    """Make the data, train, export, serve, ask."""
    work.heading("1/4  data and training")
    dates = make_dates(400 if work.fast else 16_000, 1 if work.fast else 10)
    file = work.folder / "train.jsonl"
    pairs = ({"source": pair.source, "target": pair.target} for pair in dates.train)
    file.write_text("".join(f"{json.dumps(pair, ensure_ascii=False)}\n" for pair in pairs), encoding="utf-8")
    work.console.print(f"{len(dates.train):,} dates in {file}, such as {escape(dates.train[0].source)}")
    work.train(_configuration(work, file))
    work.heading("2/4  export and certify")
    (bundle,) = work.export(NAME)
    work.heading("3/4  serve")
    with work.serve(max_rows=STREAMS) as server:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        work.heading("4/4  ask")
        answers = asyncio.run(_ask_all(server, dates))
    picture = work.folder / "dates.png"
    summary = DatesSummary(
        training=TrainingFigures.of_run(work.run_folder(NAME)),
        certificate=CertificateFigures.of(certificate_of(bundle)),
        held_out_days=Share.of(dates.held_out_days, answers.days),
        held_out_days_beams=Share.of(dates.held_out_days, answers.days_beams),
        held_out_style=Share.of(dates.held_out_style, answers.style),
        by_language=_by_language(dates.held_out_days, answers.days),
        dates_per_second=len(dates.held_out_days) / answers.seconds,
        babel=babel.__version__,
        reused=work.reused,
        bundle=bundle.folder.absolute(),
        pictures=[(work.run_folder(NAME) / "loss.png").absolute(), picture.absolute()],
    )
    _draw(summary, picture)
    work.write_summary(summary)
    _report(summary, dates, answers, work)


def _configuration(work: Work, file: Path) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "name": NAME,
        "plugin": "gru_encoder_decoder",
        "model": {"hidden_size": 128, "attention": "bahdanau", "max_source_positions": 48},
        "data": {"kind": "pairs", "files": os.path.relpath(file), "held_out": 0.03},
        "optimizer": {"learning_rate": 5e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 50},
        "trainer": {"max_steps": 300, "batch_size": 64, "validation_every": 100},
    }
    if work.fast:
        configuration["model"]["hidden_size"] = 16
        configuration["trainer"] = {"max_steps": 4, "batch_size": 8}
    return configuration


class _Answers(BaseModel):
    """Decode each source on the server."""

    days: list[str]
    seconds: float
    """For `days`."""
    days_beams: list[str]
    style: list[str]


async def _ask_all(server: Serving, dates: Dates) -> _Answers:
    async with AsyncClient(server.address, timeout=120.0) as client:
        await _ask(client, dates.held_out_style[:STREAMS])
        started = time.perf_counter()
        days = await _ask(client, dates.held_out_days)
        seconds = time.perf_counter() - started
        style = await _ask(client, dates.held_out_style)
        days_beams = await _ask(client, dates.held_out_days, num_beams=BEAMS)
    return _Answers(days=days, seconds=seconds, days_beams=days_beams, style=style)


async def _ask(client: AsyncClient, pairs: Sequence[Pair], **options: Any) -> list[str]:
    """The server's answer to each source, STREAMS of them at once."""
    free = asyncio.Semaphore(STREAMS // options.get("num_beams", 1))

    async def one(pair: Pair) -> str:
        async with free:
            generation = await client.generate(NAME, source=pair.source, max_tokens=16, temperature=0.0, **options)
            return generation.text

    return list(await asyncio.gather(*map(one, pairs)))


def _by_language(pairs: Sequence[Pair], answers: Sequence[str]) -> dict[str, Share]:
    shares: dict[str, Share] = {}
    for pair, answer in zip(pairs, answers, strict=True):
        share = shares.setdefault(pair.style.language, Share(exact=0, asked=0))
        share.asked += 1
        share.exact += answer == pair.target
    return shares


def _report(summary: DatesSummary, dates: Dates, answers: _Answers, work: Work) -> None:
    commands = (
        f"serve --models {work.models}",
        f'generate {NAME} --source "9. März 2031"',
        f'generate {NAME} --source "quarta-feira, 9 de abril de 2031" --beams {BEAMS}',
    )
    report(work.console, summary, [_examples(dates, answers), _table(summary)], commands)


def _examples(dates: Dates, answers: _Answers) -> Table:
    table = Table("language", "source", "server", title="Held-out dates", title_style="bold")
    asked = list(zip(dates.held_out_days, answers.days, strict=True))
    last = list(zip(dates.held_out_style, answers.style, strict=True))[:2]
    # Mistakes, then one of each language, in its fullest style.
    wrong = [(pair, answer) for pair, answer in asked if answer != pair.target][:MAX_MISTAKES]
    languages = {pair.style.language: (pair, answer) for pair, answer in reversed(asked)}
    for pair, answer in [*wrong, *reversed(languages.values()), *last]:
        language, style = pair.style
        note = " [dim](style not learnt)[/]" if pair.style == HELD_OUT_STYLE else ""
        color = "green" if answer == pair.target else "red"
        table.add_row(f"{language}, {style}{note}", escape(pair.source), f"[{color}]{escape(answer)}[/]")
    return table


def _table(summary: DatesSummary) -> Table:
    table = summary_table(summary.training)
    add_certificate(table, summary.certificate)
    table.add_row("[bold]exactly right, by the server[/]", "")
    table.add_row("  days not learnt from", str(summary.held_out_days), style="bold green")
    table.add_row(f"  the same, {BEAMS} beams", str(summary.held_out_days_beams))
    style = f"  a style not learnt from ({HELD_OUT_STYLE.language}, {HELD_OUT_STYLE.name})"
    table.add_row(style, str(summary.held_out_style))
    table.add_row("  by language", ", ".join(f"{name} {s.exact}/{s.asked}" for name, s in summary.by_language.items()))
    table.add_row("[bold]dates per second through gRPC[/]", f"{summary.dates_per_second:,.0f} ({STREAMS} at once)")
    return table


def _draw(summary: DatesSummary, path: Path) -> None:
    """Draw the share of exact answers by language, into a PNG."""
    figure = new_figure(9, 4)
    axes = figure.subplots()
    style = f"{HELD_OUT_STYLE.language} {HELD_OUT_STYLE.name},\nnot learnt"
    shares = summary.by_language | {style: summary.held_out_style}
    heights = [100 * share.exact / share.asked for share in shares.values()]
    colors = ["tab:blue"] * len(summary.by_language) + ["tab:orange"]
    axes.bar_label(axes.bar(list(shares), heights, color=colors), fmt="%.0f")
    axes.set(title="Held-out dates to ISO 8601", ylabel="exactly right (%)", ylim=(0, 108))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)
