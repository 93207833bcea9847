"""Recurrent decoding: the engine against a bare loop, against PyTorch, and through gRPC.

    python -m benchmarks.recurrent [--vocabulary 256 --streams 64 --rounds 5]

All contenders of a model are alive at once and take turns, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.contenders import CONTENDERS
from benchmarks.models import ensure_lstm, lstm_name

TOKENS = 512

SETTLE_SECONDS = 0.5
"""Rest between two measurements."""


class Contender:
    """A process that measures on demand."""

    def __init__(self, name: str, model: str) -> None:
        command = [sys.executable, "-m", "benchmarks.contenders", name, model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._read() != "ready":
            raise SystemExit(f"contender {name} did not start")

    def measure(self, streams: int, tokens: int) -> dict[str, float]:
        """Tokens per second, and the resident MiB after it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{streams} {tokens}\n")
        self._process.stdin.flush()
        result: dict[str, float] = json.loads(self._read())
        return result

    def close(self) -> None:
        """End the process, and the server that it may have started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def run(
    vocabulary: Annotated[list[int], typer.Option(help="Vocabulary sizes.")] = [256, 16_000],  # noqa: B006 - Typer's way
    streams: Annotated[list[int], typer.Option(help="Numbers of concurrent streams.")] = [1, 16, 64],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 5,
    contender: Annotated[list[str] | None, typer.Option(help="Who takes part; all by default.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("benchmarks/results.json"),
) -> None:
    """Measure a 2-layer LSTM, hidden 512, greedy, every contender in one run."""
    console = Console()
    results: list[dict[str, Any]] = []
    for size in vocabulary:
        ensure_lstm(size)
        contenders = {name: Contender(name, lstm_name(size)) for name in contender or CONTENDERS}
        try:
            for count in streams:
                results.append(_measure(contenders, size, count, rounds))
                console.print(_table(results[-1]))
        finally:
            for process in contenders.values():
                process.close()
    output.write_text(json.dumps({"machine": platform.processor() or platform.machine(), "results": results}, indent=1))
    console.print(f"Figures: {output}")


def _measure(contenders: dict[str, Contender], vocabulary: int, streams: int, rounds: int) -> dict[str, Any]:
    rates, resident = defaultdict(list), {}
    for number in track(range(rounds + 1), f"vocabulary {vocabulary}, {streams} streams", transient=True):
        # In another order each time: whoever follows PyTorch finds its worker threads still spinning.
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(SETTLE_SECONDS)
            result = contenders[name].measure(streams, TOKENS)
            resident[name] = result["resident_mib"]
            if number:  # the first round warms up
                rates[name].append(result["tokens_per_second"])
    medians = {name: median(values) for name, values in rates.items()}
    spread = {name: [min(values), max(values)] for name, values in rates.items()}
    return {
        "vocabulary": vocabulary, "streams": streams, "tokens_per_second": medians,
        "range": spread, "resident_mib": resident,
    }  # fmt: skip


def _table(result: dict[str, Any]) -> Table:
    rates = result["tokens_per_second"]
    table = Table(title=f"LSTM 2 x 512, vocabulary {result['vocabulary']}, {result['streams']} streams")
    for column in ("", "tokens/s", "x eager", "x bare loop", "x engine", "RSS MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for name in CONTENDERS:
        if name not in rates:
            continue
        rate = rates[name]
        bases = ("eager", "bare loop", "engine")
        ratios = [f"{rate / rates[base]:.2f}" if base in rates else "" for base in bases]
        table.add_row(name, f"{rate:,.0f}", *ratios, f"{result['resident_mib'][name]:,.0f}")
    return table


if __name__ == "__main__":
    typer.run(run)
