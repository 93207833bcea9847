"""`statewise demo NAME`: a whole job at once, through the same commands that a user gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.demos import DEMOS, load_demo
from statewise.cli.demos.processes import stopped_by_signals
from statewise.cli.demos.work import Work
from statewise.locks import locked_folder

_NAMES = "\n\n".join(f"[bold]{name}[/]: {what}" for name, what in DEMOS.items())


def demo(
    name: Annotated[str, typer.Argument(help=_NAMES, metavar="NAME")] = "text",
    folder: Annotated[
        Path, typer.Option(help="Everything goes to FOLDER/NAME; what is there already is reused.")
    ] = Path("demo"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 takes a free one.")] = 0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Train a tiny model for a few steps: to see that everything works.")
    ] = False,
) -> None:
    """Train, export, certify and serve on real data, and show what came of it: about two minutes.

    Nothing is downloaded: the data comes with Python or with the packages of the extra `demos`.
    Run again, a demo reuses what is there.
    """
    run = load_demo(name)
    # A tiny model has a folder of its own, so that it never takes the place of the real one.
    own = folder / (f"{name}-fast" if fast else name)
    taken = f"in {own} another demo is running; wait for it, or choose another --folder"
    with stopped_by_signals(), locked_folder(own, "--folder", taken=taken):
        run(Work(own, fast=fast, port=port))
