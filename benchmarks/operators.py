"""Time of a decode step by operator, from ONNX Runtime's own profiler.

python -m benchmarks.operators [--variant cpu-int8 --rows 16 --filled 96]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.models import GPT2Shape, ensure_gpt2, open_newest
from benchmarks.report import Report
from statewise.bundles.reader import Bundle
from statewise.errors import StatewiseError
from statewise.model.spec import InputSpec, TokenInput
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.state.pool import capacity_for
from statewise_server.runtime.steps.runner import Runner

NUM_THREADS = 2
LEAST_SHARE = 0.005
"""Share below which operators are summed in one line."""

Event = dict[str, Any]


def run(
    variant: Annotated[
        str, typer.Option(help="Variant of the bundle; exported where the benchmark's own model lacks it.")
    ] = ("cpu-float32"),
    rows: Annotated[int, typer.Option(min=1, help="Streams that decode together.")] = 16,
    filled: Annotated[int, typer.Option(min=1, help="Items that each stream has seen.")] = 96,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps measured.")] = 20,
    repository: Annotated[Path | None, typer.Option(help="A repository with another model.", exists=True)] = None,
    model: Annotated[str, typer.Option(help="Name of the model in `--repository`.")] = "",
    output: Annotated[Path, typer.Option(help="File for the figures as JSON; Markdown beside it.")] = Path(
        "benchmarks/results-operators.json"
    ),
) -> None:
    """Show the time of a decode step by operator, for a decoder of GPT-2's shape unless another model is named.

    The profiler adds some microseconds to every operator: the table also gives the step's time without it.
    """
    try:
        bundle = open_newest(repository, model) if repository else ensure_gpt2(GPT2Shape(), (variant,))
        seconds = median(decode(bundle, variant, rows, filled, steps))
        with tempfile.TemporaryDirectory() as scratch:
            decode(bundle, variant, rows, filled, steps, Path(scratch) / "profile")
            (file,) = Path(scratch).iterdir()
            totals = by_operator(json.loads(file.read_text()), steps)
    except StatewiseError as error:
        raise typer.BadParameter(str(error)) from None
    report = Report(f"{bundle.manifest.name}, {variant}, {rows} rows, {filled} items", Console())
    add_table(report, totals, seconds, steps)
    report.write(output)


def decode(
    bundle: Bundle, variant: str, num_rows: int, num_filled: int, num_steps: int, profile: Path | None = None
) -> list[float]:
    """Seconds of each decode step, after one warm-up step; `profile` is the prefix of the profile's file."""
    files, spec = bundle.variant(variant), bundle.spec(variant)
    session = create_session(bundle.path(files.step), intra_op_threads=NUM_THREADS, profile=profile)
    capacity = capacity_for(num_filled + num_steps + 1, spec.max_positions) if spec.max_positions else 0
    runner = Runner(spec, session, None, num_rows, capacity=capacity, ragged_prefill=files.ragged_prefill)
    items = _items(spec.input, num_rows, num_filled)
    for row in range(num_rows):
        one, length = slice(row, row + 1), np.array([num_filled])
        runner.step(one, items[one], length, runner.sampler.no_noise(1, 1), num_rows=num_rows)
    seconds = []
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        runner.decode(num_rows, items[:, :1], runner.sampler.no_noise(num_rows, 1), num_rows=num_rows)
        seconds.append(time.perf_counter() - started)
    if profile:
        session.end_profiling()
    return seconds[1:]


def _items(reads: InputSpec, num_rows: int, num_items: int) -> NDArray[Any]:
    numbers = np.random.default_rng(0)
    if isinstance(reads, TokenInput):
        return numbers.integers(0, reads.vocabulary_size, (num_rows, num_items))
    return numbers.standard_normal((num_rows, num_items, reads.features), np.float32)


def by_operator(events: Iterable[Event], num_steps: int) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each operator in the last runs; an `If` or `Loop` includes its subgraphs."""
    events = list(events)
    runs = [event for event in events if event["name"] == "model_run"][-num_steps:]
    nodes = [event for event in events if event["name"].endswith("_kernel_time") and event["ts"] >= runs[0]["ts"]]
    totals: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    end_of_outer = 0
    # An operator with subgraphs begins before its subgraphs' operators, and is recorded after them.
    for node in sorted(nodes, key=lambda node: (node["ts"], -node["dur"])):
        if node["ts"] < end_of_outer:
            continue
        name = node["args"]["op_name"]
        if name in {"If", "Loop"}:
            end_of_outer = node["ts"] + node["dur"]
        calls, milliseconds = totals[name]
        totals[name] = (calls + 1, milliseconds + node["dur"] / 1000)
    return dict(totals)


def add_table(report: Report, totals: dict[str, tuple[int, float]], seconds: float, num_steps: int) -> None:
    """Add a table of the operators, the costliest first."""
    everything = sum(milliseconds for _, milliseconds in totals.values())
    shown = {name: entry for name, entry in totals.items() if entry[1] >= LEAST_SHARE * everything}
    rest = [entry for name, entry in totals.items() if name not in shown]
    lines = sorted(shown.items(), key=lambda item: -item[1][1])
    lines.append(("others", (sum(calls for calls, _ in rest), sum(milliseconds for _, milliseconds in rest))))
    rows = [
        [name, f"{calls / num_steps:g}", f"{total / num_steps:.2f}", f"{total / everything:.1%}"]
        for name, (calls, total) in lines
    ]
    rows.append(["sum", "", f"{everything / num_steps:.2f}", ""])
    rows.append(["a step without the profiler", "", f"{1000 * seconds:.2f}", ""])
    milliseconds = {name: total / num_steps for name, (_, total) in totals.items()}
    columns = ["operator", "calls", "ms per step", "share"]
    report.add("Operators of a decode step", columns, rows, milliseconds=milliseconds, step_ms=1000 * seconds)


if __name__ == "__main__":
    typer.run(run)
