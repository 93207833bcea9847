"""The `statewise` command.

Commands of the base stand in `statewise.cli.table`; the others are announced under the entry-point group
`statewise.commands`, so that each program brings its own and a third party can add one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.main import get_command

import statewise
from statewise.cli.flags import in_flags
from statewise.cli.groups import LazyGroup
from statewise.cli.table import COMMANDS
from statewise.errors import DivergedError, InvalidRequestError, ParityError, StatewiseError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 (a check missed), 2 (bad input), 70 (a fault), 130 (interrupted)."""
    try:
        get_command(_app).main(args=None if arguments is None else list(arguments), prog_name="statewise")
    except Exception as error:
        if os.environ.get("STATEWISE_TRACEBACK") == "1":
            raise
        message, code = _explain(error)
        Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(code)
    sys.exit(0)


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, InvalidRequestError):
        error = in_flags(error)
    if isinstance(error, StatewiseError):
        return str(error), 1 if isinstance(error, ParityError | DivergedError) else 2
    remedy = "a fault of Statewise itself; STATEWISE_TRACEBACK=1 shows where, please report it"
    return f"{type(error).__name__}: {error} ({remedy})", 70


class _Commands(LazyGroup):
    """The commands of `statewise`."""

    entry_point_group = "statewise.commands"
    table = COMMANDS


_app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="The usual order: train, export, verify, serve, generate. `statewise demo` does it all at once.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"statewise {statewise.__version__}")
        raise typer.Exit


@_app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train sequence models, export them to ONNX with a proof, and serve them over gRPC."""
