"""Transformer decoding: the engine against a bare loop, through gRPC, and beside peers with the same weights.

    python -m benchmarks.transformer [--variant cpu-float32 --workload W2 --rounds 3] [--peers]

All contenders are alive at once and take turns, so that a slow minute of the machine affects all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import latency, memory
from benchmarks.contenders.peers.roster import PEERS, peer_contender
from benchmarks.contenders.process import Contender, ContenderError
from benchmarks.contenders.turns import Field, Figures
from benchmarks.goals import GOALS
from benchmarks.models import GPT2Shape, ensure_gpt2
from benchmarks.report import Report, number
from benchmarks.workloads import TRANSFORMER_WORKLOADS
from statewise.bundles.reader import Bundle

INT4 = "cpu-int4"
"""Contender for one stream, measured in W1 only."""


def run(
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Variant to measure, exported if missing; all of the bundle's by default; repeatable."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help=f"Workloads, of {', '.join(TRANSFORMER_WORKLOADS)}; all by default; repeatable."),
    ] = None,
    contender: Annotated[
        list[str] | None,
        typer.Option(help="Part of a contender's name, as 'engine' or 'int8'; all by default; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="Measure the peers too (`make bench-peers`).")] = False,
    latencies: Annotated[bool, typer.Option(help="Measure gaps in streams while long prompts are read.")] = True,
    memories: Annotated[bool, typer.Option(help="Measure resident memory with all rows full.")] = True,
    output: Annotated[Path, typer.Option(help="File for the figures as JSON; Markdown beside it.")] = Path(
        "benchmarks/results-transformer.json"
    ),
) -> None:
    """Measure a decoder of GPT-2's shape, greedy, two threads, every contender in one run.

    W1: one request, prompt 32, 128 new tokens. W2: 16 of these at once. W3: 64 requests, prompts of 8 to 128 tokens and
    outputs of 16 to 192, at most 16 (W3@16) and 32 (W3@32) running. Rates are output tokens per second. `weights read`
    only reads as many bytes as the float32 weights have, once per token: the limit of one stream.

    The first call exports and certifies the model, which takes some minutes.
    """
    console = Console()
    workloads = _chosen(workload)
    shape = GPT2Shape()
    bundle = ensure_gpt2(shape, tuple(variant or ()))
    variants = variant or [name for name, has in bundle.manifest.variants.items() if has.device == "cpu"]
    report = Report(f"GPT-2 shape, {shape.num_layers} layers, width {shape.hidden_size}", console)
    failures: dict[str, str] = {}
    field_of_all = [*our_contenders(bundle, shape, variants), *(_peers(bundle, failures, console) if peers else [])]
    taking_part = [c for c in field_of_all if not contender or any(part in c.name for part in contender)]
    with Field(taking_part, console) as field:
        figures = {name: field.measure(TRANSFORMER_WORKLOADS[name], rounds) for name in workloads}
    add_rates(report, taking_part, figures, failures | field.failures)
    if latencies:
        latency.add(report, bundle, variants[0])
    if memories:
        memory.add(report, bundle, [name for name in variants if name != INT4])
    report.write(output)
    raise typer.Exit(1 if field.failures.keys() - {peer.name for peer in PEERS} else 0)


def our_contenders(bundle: Bundle, shape: GPT2Shape, variants: list[str]) -> list[Contender]:
    """Return the memory limit, and for each variant the bare loop, the engine and the server."""
    num_bytes = str(4 * shape.num_weights_read)
    contenders = [
        Contender("weights read", "benchmarks.contenders.loops", ("weights read", num_bytes), workloads=("W1",))
    ]
    for variant in variants:
        precision = variant.removeprefix("cpu-")
        workloads = ("W1",) if variant == INT4 else ()
        for kind, module in (("bare loop", "loops"), ("engine", "served"), ("gRPC", "served")):
            contenders.append(
                Contender(
                    f"{kind} {precision}",
                    f"benchmarks.contenders.{module}",
                    (kind, str(bundle.folder), variant),
                    only_uniform=kind == "bare loop",
                    workloads=workloads,
                )
            )
    return contenders


def add_rates(
    report: Report, contenders: list[Contender], figures: dict[str, Figures], failures: dict[str, str]
) -> None:
    """Add the tables of rates and goals, and the contenders that were not measured."""
    rows = [
        [c.name, *(number(f.rate(c.name)) for f in figures.values()), number(_most_resident(c.name, figures))]
        for c in contenders
    ]
    rates = [f.to_json() for f in figures.values()]
    report.add("Output tokens per second", ["contender", *figures, "most RSS, MiB"], rows, rates=rates)
    goals = [row for goal in GOALS if (row := goal.row(figures))]
    if goals:
        report.add("Goals", ["ratio", "goal", "measured", "reached"], goals, goals=goals)
    if failures:
        report.add("Not measured", ["contender", "why"], [list(item) for item in failures.items()], failures=failures)


def _most_resident(name: str, figures: dict[str, Figures]) -> float | None:
    return max((f.resident_mib[name] for f in figures.values() if name in f.resident_mib), default=None)


def _peers(bundle: Bundle, failures: dict[str, str], console: Console) -> list[Contender]:
    contenders = []
    for peer in PEERS:
        try:
            with console.status(f"{peer.name}: its model"):
                contenders.append(peer_contender(peer, bundle))
        except ContenderError as error:
            failures[peer.name] = str(error)
            console.print(f"[yellow]{peer.name}: not measured: {error}")
    return contenders


def _chosen(names: list[str] | None) -> list[str]:
    unknown = [name for name in names or () if name not in TRANSFORMER_WORKLOADS]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(TRANSFORMER_WORKLOADS)}", param_hint="--workload"
        )
    return names or list(TRANSFORMER_WORKLOADS)


if __name__ == "__main__":
    typer.run(run)
