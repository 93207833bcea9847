"""The `statewise` command.

Its subcommands are announced under the entry-point group `statewise.commands`, so that each program brings
its own, a third party can add one, and none is imported before it is wanted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

import statewise
from statewise.cli.flags import in_flags
from statewise.errors import ConfigError, InvalidRequestError, ParityError, StatewiseError

GROUP = "statewise.commands"

_ORDER = (
    *("train", "import", "export", "verify", "serve", "generate", "predict", "score", "forecast"),
    *("models", "plot", "demo"),
)

_OWN = ("generate", "predict", "score", "models", "demo")

_EXTRAS = {
    **dict.fromkeys(("lightning", "matplotlib", "onnxscript", "safetensors", "torch"), "train"),
    **dict.fromkeys(("sklearn", "vega_datasets"), "demos"),
    "ray": "ray",
}
"""What installs a package that is missing."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 (parity missed), 2 (bad input), 70 (a fault), 130 (interrupted)."""
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
        return str(error), 1 if isinstance(error, ParityError) else 2
    if isinstance(error, ModuleNotFoundError) and (hint := _how_to_install(error)):
        return hint, 2
    told = "a fault of Statewise itself; STATEWISE_TRACEBACK=1 shows where, please report it"
    return f"{type(error).__name__}: {error} ({told})", 70


def _how_to_install(error: ImportError) -> str | None:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    return f"{error.name} is not installed; this needs: pip install 'statewise[{extra}]'" if extra else None


class _Commands(TyperGroup):
    """The announced commands; one is imported when it is run, all are for `--help`."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = _announced()
        return [name for name in _ORDER if name in known] + sorted(known.keys() - set(_ORDER))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = _announced().get(cmd_name)
        return _load(entry) if entry is not None else None


def _announced() -> dict[str, EntryPoint]:
    own = [name for name in _OWN if find_spec(f"statewise.cli.{name}")]
    ours = {name: EntryPoint(name, f"statewise.cli.{name}:{name}", GROUP) for name in own}
    return {entry.name: entry for entry in entry_points(group=GROUP)} | ours


def _load(entry: EntryPoint) -> Any:
    try:
        function = entry.load()
    except (ImportError, AttributeError) as error:
        function = _explanation(entry, error)
    if isinstance(function, typer.Typer):
        group = get_command(function)
        group.name = entry.name
        return group
    app = typer.Typer(add_completion=False)
    # Options of a command that cannot be imported are unknown; the explanation takes any.
    settings = {"ignore_unknown_options": True, "allow_extra_args": True} if hasattr(function, "any") else {}
    app.command(entry.name, context_settings=settings)(function)
    return get_command(app)


def _explanation(entry: EntryPoint, error: Exception) -> Callable[[], None]:
    hint = _how_to_install(error) if isinstance(error, ImportError) else None
    message = hint or f"{entry.value} cannot be imported: {error}"

    def explain() -> None:
        raise ConfigError(f"`statewise {entry.name}` cannot run: {message}")

    explain.__doc__ = f"Cannot run here: {message}"
    explain.any = True  # type: ignore[attr-defined] # read by _load
    return explain


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
