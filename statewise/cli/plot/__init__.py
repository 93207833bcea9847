"""`statewise plot`: pictures that explain models.

Pictures of a served model are drawn by this package; an entry point of the group `statewise.commands.plot` announces
one that needs more, so that these need no PyTorch.
"""

from __future__ import annotations

import typer

from statewise.cli.groups import LazyGroup
from statewise.cli.table import PLOTS


class _Plots(LazyGroup):
    """The commands of `statewise plot`."""

    entry_point_group = "statewise.commands.plot"
    table = PLOTS


plot = typer.Typer(cls=_Plots, add_completion=False, no_args_is_help=True, rich_markup_mode="rich")


@plot.callback()
def _plot() -> None:
    """Draw pictures that explain models."""
