"""Demo `text`: a GRU over the characters of Python's own documentation."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from statewise.commands.demos.processes import Serving
from statewise.commands.demos.speed import measure
from statewise.commands.demos.summary import (
    CertificateFigures,
    TrainingFigures,
    add_certificate,
    add_training,
    new_figure,
    summary_table,
    tell_files,
    tell_next,
)
from statewise.commands.demos.work import Work, certificate_of

NAME = "python-docs"
PROMPT = 'The "with" statement is used to '
STREAMS = (1, 32)
BASELINES = {"unigram": "unigram baseline", "bigram": "first-order baseline"}


class Summary(BaseModel):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    certificate: CertificateFigures
    tokens_per_second: dict[int, float]
    """By number of concurrent streams, through gRPC."""
    reused: list[str]
    """What was there already."""
    bundle: Path
    pictures: list[Path]

    @property
    def bits(self) -> dict[str, float]:
        """Held-out bits per character by predictor, the worst first, the model last."""
        assert self.training.bits_per_character is not None
        known = {title: self.training.baselines[name] for name, title in BASELINES.items()}
        return known | {self.training.name: self.training.bits_per_character}


def run(work: Work) -> None:
    """Train, export, serve, stream, measure."""
    work.heading("1/5  train")
    work.train(_configuration(fast=work.fast))
    work.heading("2/5  export and certify")
    (bundle,) = work.export(NAME)
    work.heading("3/5  serve")
    with work.serve(max_rows=max(STREAMS)) as server:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        _generate(work, server)
        speeds = _measure(work, server)
    picture = work.folder / "text.png"
    summary = Summary(
        training=TrainingFigures.of_run(work.run_folder(NAME)),
        certificate=CertificateFigures.of(certificate_of(bundle)),
        tokens_per_second=speeds,
        reused=work.reused,
        bundle=bundle.folder.absolute(),
        pictures=[(work.run_folder(NAME) / "loss.png").absolute(), picture.absolute()],
    )
    _draw(summary, picture)
    work.write_summary(summary)
    _report(summary, work)


def _configuration(*, fast: bool) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "name": NAME,
        "plugin": "gru",
        "model": {"hidden_size": 256, "embedding_size": 64},
        "data": {"kind": "corpus", "corpus": "python-docs"},
        "tokenizer": {"kind": "characters"},
        "optimizer": {"learning_rate": 5e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 50},
        "trainer": {"max_epochs": 6, "batch_size": 32, "sequence_length": 128},
    }
    if fast:
        configuration["model"] = {"hidden_size": 32}
        configuration["data"]["held_out"] = 0.02
        configuration["trainer"] = {"max_steps": 4, "batch_size": 8}
    return configuration


def _generate(work: Work, server: Serving) -> None:
    """Stream two continuations to the terminal, each from a client process of its own."""
    work.heading("4/5  generate")
    for title, temperature, length in (("greedy", "0", "160"), ("temperature 0.8, seed 1", "0.8", "400")):
        work.console.print(f"[bold]{title}:[/]\n[cyan]{escape(PROMPT)}[/]", end="")
        command = ["generate", NAME, PROMPT, "--address", server.address, "--max-tokens", length]
        work.command(*command, "--temperature", temperature, "--seed", "1", quiet=True)


def _measure(work: Work, server: Serving) -> dict[int, float]:
    work.heading("5/5  measure")
    length, rounds = (64, 1) if work.fast else (512, 3)
    speeds: dict[int, float] = {}
    for streams in STREAMS:
        started = time.monotonic()
        speeds[streams] = asyncio.run(
            measure(server.address, NAME, PROMPT, streams=streams, length=length, rounds=rounds)
        )
        seconds = time.monotonic() - started
        work.console.print(f"{streams:>3} at once: {speeds[streams]:>9,.0f} tokens/s through gRPC ({seconds:.1f} s)")
    return speeds


def _report(summary: Summary, work: Work) -> None:
    work.console.print()
    work.console.print(_table(summary))
    tell_files(work.console, bundles=[summary.bundle], pictures=summary.pictures, reused=summary.reused)
    tell_next(
        work.console,
        f"verify {work.models / NAME}",
        f"serve --models {work.models}",
        f'generate {NAME} "Lists are " --temperature 0.8',
        f"train {work.run_folder(NAME) / 'config.yaml'} --set model.hidden_size=512 --output runs/larger",
    )


def _table(summary: Summary) -> Table:
    training, table = summary.training, summary_table()
    add_training(table, training)
    table.add_row("[bold]held-out bits per character[/]", f"{training.held_out_characters:,} characters")
    for title, bits in summary.bits.items():
        table.add_row(f"  {title}", f"{bits:.3f}", style="bold green" if title == training.name else "")
    add_certificate(table, summary.certificate)
    table.add_row("[bold]tokens per second through gRPC[/]", "")
    for streams, speed in summary.tokens_per_second.items():
        table.add_row(f"  {_streams(streams)}", f"{speed:,.0f}")
    return table


def _draw(summary: Summary, path: Path) -> None:
    """Draw bits per character and tokens per second as bars, into a PNG."""
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    bits = summary.bits
    bars = left.bar(list(bits), list(bits.values()), color=["0.7"] * (len(bits) - 1) + ["tab:green"])
    left.bar_label(bars, fmt="%.2f")
    left.set(title="Held-out text", ylabel="bits per character (lower is better)")
    speeds = summary.tokens_per_second
    bars = right.bar([_streams(number) for number in speeds], list(speeds.values()), color="tab:blue")
    right.bar_label(bars, fmt="{:,.0f}")
    right.set(title="Streaming through gRPC", ylabel="tokens per second")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    figure.savefig(path, format="png", dpi=120)


def _streams(number: int) -> str:
    return "1 stream" if number == 1 else f"{number} streams"
