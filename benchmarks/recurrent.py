"""Recurrent decoding: the engine against a bare loop, against PyTorch, and through gRPC.

    python -m benchmarks.recurrent [--vocabulary 256 --streams 64 --rounds 5]

All contenders of a model are alive at once and take turns, so that a slow minute of the machine affects all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.contenders.process import Contender
from benchmarks.contenders.turns import Field, Figures
from benchmarks.models import CPU_FLOAT32, ensure_lstm
from benchmarks.report import Report, number
from benchmarks.workloads import uniform
from statewise.bundles.reader import Bundle

NUM_TOKENS = 256

MAX_ROWS = 64

MODULES = {
    "PyTorch eager": "benchmarks.contenders.loops",
    "bare loop": "benchmarks.contenders.loops",
    "bare decode": "benchmarks.contenders.loops",
    "engine": "benchmarks.contenders.served",
    "gRPC": "benchmarks.contenders.served",
}

BASES = ("PyTorch eager", "bare loop", "engine")


def run(
    vocabulary: Annotated[list[int], typer.Option(help="Vocabulary sizes.")] = [256, 16_000],  # noqa: B006 - Typer's way
    streams: Annotated[list[int], typer.Option(help="Numbers of concurrent streams.")] = [1, 16, 64],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 3,
    contender: Annotated[
        list[str] | None, typer.Option(help=f"Contenders, of: {', '.join(MODULES)}; all by default.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File for the figures as JSON; Markdown beside it.")] = Path(
        "benchmarks/results-recurrent.json"
    ),
) -> None:
    """Measure a 2-layer LSTM, hidden 512, greedy, every contender in one run: about three minutes.

    `bare loop` runs the step graph without a server, everything bound beforehand; `bare decode` runs the graph of
    several tokens; `gRPC` reads `statewise serve` on the same cores.
    """
    console = Console()
    report = Report("LSTM, 2 layers, hidden 512", console)
    failures: dict[str, str] = {}
    for size in vocabulary:
        bundle = ensure_lstm(size)
        with Field([_contender(name, bundle) for name in contender or MODULES], console) as field:
            for count in streams:
                workload = uniform(f"vocabulary {size}, {count} streams", count, 1, NUM_TOKENS, MAX_ROWS)
                _add(report, field.measure(workload, rounds))
        failures |= field.failures
    report.write(output)
    raise typer.Exit(1 if failures else 0)


def _contender(name: str, bundle: Bundle) -> Contender:
    if name not in MODULES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(MODULES)}", param_hint="--contender")
    return Contender(name, MODULES[name], (name, str(bundle.folder), CPU_FLOAT32))


def _add(report: Report, figures: Figures) -> None:
    columns = ["contender", "tokens/s", *(f"x {base}" for base in BASES), "RSS MiB"]
    rows = [
        [
            name,
            number(figures.rate(name)),
            *(figures.ratio(name, base) for base in BASES),
            number(figures.resident_mib[name]),
        ]
        for name in MODULES
        if figures.rate(name)
    ]
    name = figures.workload.name
    report.add(name, columns, rows, **{name: figures.to_json()})


if __name__ == "__main__":
    typer.run(run)
