"""Demo `text`: every causal family learns the characters of Python's own documentation, and all are compared."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import numpy as np
from rich.markup import escape

from statewise.bundles.reader import Bundle
from statewise.cli.demos.processes import Serving
from statewise.cli.demos.speed import measure
from statewise.cli.demos.summary import CertificateFigures, TrainingFigures, report
from statewise.cli.demos.text_summary import FamilyFigures, TextSummary, draw, family_table, main_table
from statewise.cli.demos.work import Work, certificate_of
from statewise.model.spec import ModelSpec

MAIN = "lstm"
"""The model that is trained for longest, streamed from and measured in full."""
PROMPT = 'The "with" statement is used to '
STREAMS = (1, 32)

_BASE: dict[str, Any] = {
    "data": {"kind": "corpus", "corpus": "python-docs"},
    "tokenizer": {"kind": "characters"},
    "schedule": {"kind": "cosine", "warmup_steps": 40},
}

# The slowest first, so that what trains beside it on another core ends about when it does.
_FAMILIES: dict[str, dict[str, Any]] = {
    "lstm": {
        "model": {"hidden_size": 256, "embedding_size": 64},
        "optimizer": {"learning_rate": 8e-3},
        "trainer": {"max_epochs": 5, "batch_size": 16},
    },
    "transformer": {
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "positions": "rotary", "max_positions": 512},
        "optimizer": {"learning_rate": 1e-2},
        "trainer": {"max_epochs": 2, "batch_size": 8},
    },
    "gru": {
        "model": {"hidden_size": 128, "embedding_size": 64},
        "optimizer": {"learning_rate": 1e-2},
        "trainer": {"max_epochs": 1, "batch_size": 8},
    },
    "rnn": {
        "model": {"hidden_size": 128, "embedding_size": 64},
        "optimizer": {"learning_rate": 3e-3},
        "trainer": {"max_epochs": 1, "batch_size": 8},
    },
    "ar-layers": {
        "plugin": "autoregressive",
        "model": {"window": 10, "hidden_sizes": [256], "embedding_size": 24},
        "optimizer": {"learning_rate": 5e-3},
        "trainer": {"max_epochs": 1, "batch_size": 8},
    },
    "ar-linear": {
        "plugin": "autoregressive",
        "model": {"window": 8},
        "optimizer": {"learning_rate": 1e-2},
        "trainer": {"max_epochs": 1, "batch_size": 8},
    },
    "markov": {},
}

_FAST = ("lstm", "markov")


def run(work: Work) -> None:
    """Train, export, serve, stream, measure."""
    names = _FAST if work.fast else tuple(_FAMILIES)
    work.heading("1/5  train")
    work.train(*(_configuration(name, fast=work.fast) for name in names))
    work.heading("2/5  export and certify")
    bundles = dict(zip(names, work.export(*names), strict=True))
    work.heading("3/5  serve")
    with work.serve(max_rows=max(STREAMS)) as server:
        work.console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
        _generate(work, server)
        speeds = _measure(work, server, names)
    _report(_summary(work, bundles, speeds), work)


def _configuration(name: str, *, fast: bool) -> dict[str, Any]:
    configuration = {"name": name, "plugin": name, **_BASE, **_FAMILIES[name]}
    if fast and name != "markov":
        configuration["model"] = {"hidden_size": 32}
        configuration["trainer"] = {"max_steps": 4, "batch_size": 8}
    if fast:
        configuration["data"] = {**_BASE["data"], "held_out": 0.02}
    return configuration


def _generate(work: Work, server: Serving) -> None:
    """Stream two continuations to the terminal, each from a client process of its own."""
    work.heading("4/5  generate")
    for title, temperature, length in (("greedy", "0", "160"), ("temperature 0.8, seed 1", "0.8", "400")):
        work.console.print(f"[bold]{title}:[/]\n[cyan]{escape(PROMPT)}[/]", end="")
        command = ["generate", MAIN, PROMPT, "--address", server.address, "--max-tokens", length]
        work.command(*command, "--temperature", temperature, "--seed", "1", quiet=True)


def _measure(work: Work, server: Serving, names: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Tokens per second of each model, by number of concurrent streams."""
    work.heading("5/5  measure")
    started = time.monotonic()
    speeds = {name: {streams: _speed(work, server, name, streams) for streams in STREAMS} for name in names}
    for streams, speed in speeds[MAIN].items():
        work.console.print(f"{MAIN}, {streams:>2} at once: {speed:>9,.0f} tokens/s through gRPC")
    work.console.print(f"{len(names)} models measured in {time.monotonic() - started:.1f} s")
    return speeds


def _speed(work: Work, server: Serving, name: str, streams: int) -> float:
    length, rounds = (512, 3) if name == MAIN else (256, 2)
    if work.fast:
        length, rounds = 64, 1
    return asyncio.run(measure(server.address, name, PROMPT, streams=streams, length=length, rounds=rounds))


def _summary(work: Work, bundles: dict[str, Bundle], speeds: dict[str, dict[int, float]]) -> TextSummary:
    picture = work.folder / "text.png"
    families = [
        FamilyFigures(
            training=TrainingFigures.of_run(work.run_folder(name)),
            state_bytes=_state_bytes(bundle.manifest.model),
            state_grows=bundle.manifest.model.has_caches,
            tokens_per_second=speeds[name],
        )
        for name, bundle in bundles.items()
    ]
    summary = TextSummary(
        main=MAIN,
        # From the worst to the best.
        families=sorted(families, key=lambda family: family.bits, reverse=True),
        certificate=CertificateFigures.of(certificate_of(bundles[MAIN])),
        reused=work.reused,
        bundle=bundles[MAIN].folder.absolute(),
        pictures=[(work.run_folder(MAIN) / "loss.png").absolute(), picture.absolute()],
    )
    draw(summary, picture)
    work.write_summary(summary)
    return summary


def _state_bytes(model: ModelSpec) -> int:
    """Bytes of state that one stream carries at its longest."""
    num_positions = model.max_positions or 0
    return sum(math.prod(state.row_shape(num_positions)) * np.dtype(state.dtype).itemsize for state in model.state)


def _report(summary: TextSummary, work: Work) -> None:
    commands = (
        f"verify {work.models / MAIN}",
        f"serve --models {work.models}",
        f'generate {MAIN} "Lists are " --temperature 0.8',
        f"train {work.run_folder(MAIN) / 'config.yaml'} --set model.hidden_size=512 --output runs/larger",
    )
    report(work.console, summary, [family_table(summary), main_table(summary)], commands)
