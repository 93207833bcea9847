"""Groups of commands of which each is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from statewise.cli.table import Command
from statewise.errors import ConfigError
from statewise.extras import explain_missing, is_installed


class LazyGroup(TyperGroup):
    """The commands of a table, and those announced under an entry-point group.

    A command is imported when it runs; `--help` imports those that are not in the table alone.
    """

    entry_point_group: ClassVar[str]
    table: ClassVar[Sequence[Command]]

    def list_commands(self, ctx: Any) -> list[str]:
        """The table's commands in its order, then the others by name."""
        known = [command.name for command in self.table if command.name in self._announced]
        return known + sorted(self._announced.keys() - set(known))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command as `--help` lists it."""
        known = self._known(cmd_name)
        if cmd_name not in self._announced:
            return None
        if known is not None:
            missing = known.extra is not None and not is_installed(known.extra)
            remark = rf" Needs statewise\[{known.extra}]." if missing else ""
            return TyperCommand(cmd_name, help=known.summary + remark)
        try:
            return self._imported(ctx, cmd_name)
        except ConfigError as error:
            return TyperCommand(cmd_name, help=escape(str(error)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is to run, imported. Raises ConfigError where it cannot be."""
        # Typer suggests one of these names where the given one is unknown; it asks get_command for the command.
        self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]
        name, _, rest = super().resolve_command(ctx, args)
        return name, self._imported(ctx, str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises ConfigError, naming the extra, where a package is missing that comes with one."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            if message := explain_missing(error, self._extra(name)):
                raise ConfigError(f"`{ctx.command_path} {name}` cannot run: {message}") from error
            raise

    def _imported(self, ctx: Any, name: str) -> Any:
        entry = self._announced[name]
        try:
            return load(entry)
        except (ImportError, AttributeError) as error:
            missing = explain_missing(error, self._extra(name)) if isinstance(error, ImportError) else None
            reason = missing or f"{entry.value} cannot be imported: {error}"
            raise ConfigError(f"`{ctx.command_path} {name}` cannot run: {reason}") from error

    @cached_property
    def _announced(self) -> dict[str, EntryPoint]:
        """The commands by name; those of the table's own package take precedence."""
        group = self.entry_point_group
        own = {known.name: EntryPoint(known.name, known.function, group) for known in self.table if known.function}
        return {entry.name: entry for entry in entry_points(group=group)} | own

    def _known(self, name: str | None) -> Command | None:
        return next((command for command in self.table if command.name == name), None)

    def _extra(self, name: str | None) -> str | None:
        known = self._known(name)
        return known.extra if known is not None else None


def load(entry: EntryPoint) -> Any:
    """Import the command of an entry point, which is a function or a group."""
    function = entry.load()
    if isinstance(function, typer.Typer):
        group = get_command(function)
        group.name = entry.name
        return group
    app = typer.Typer(add_completion=False)
    app.command(entry.name)(function)
    return get_command(app)
