"""`statewise models`: what a running server serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from statewise.cli.generate import Address
from statewise.client import DEFAULT_ADDRESS, Client, ModelInfo


def models(
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models of a running server, also those that it refused, with the reason."""
    with Client(address, timeout=30.0) as client:
        found = client.models()
    if as_json:
        print(json.dumps([asdict(model) for model in found], ensure_ascii=False))
        return
    Console().print(_table(found))


def _table(found: list[ModelInfo]) -> Table:
    # Names are to be copied, so they stay whole where the terminal is narrow.
    whole = [Column(name, no_wrap=True, overflow="fold") for name in ("model", "state", "variant")]
    table = Table(*whole, "plugin", "input", "running", "waiting", "remark")
    for model in found:
        style = {"ready": "green", "refused": "red"}.get(model.state, "yellow")
        table.add_row(
            f"{model.name}/{model.version}",
            f"[{style}]{model.state}[/]",
            model.variant,
            model.plugin,
            f"{model.input_kind} {model.input_size}" if model.input_kind else "",
            f"{model.running}/{model.max_rows}" if model.max_rows else "",
            f"{model.waiting}/{model.max_waiting}" if model.max_rows else "",
            escape(model.reason),
        )
    return table
