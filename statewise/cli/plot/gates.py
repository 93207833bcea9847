"""`statewise plot gates`: the gates of a served LSTM or GRU, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.generate import Address
from statewise.cli.plot.heat_maps import draw_gates
from statewise.cli.plot.inspection import (
    Layer,
    Model,
    SeriesFile,
    Text,
    Tokens,
    check_panels,
    draw,
    inspect,
    read_input,
    read_number,
    select_layer,
    select_rank,
)
from statewise.client import DEFAULT_ADDRESS


def gates(
    model: Model,
    text: Text = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("gates.png"),
    layer: Layer = "all",
    tokens: Tokens = None,
    series: SeriesFile = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Show how the gates of an LSTM or a GRU stand while it reads: open (1) or shut (0), for every unit over time.

    Under each heat map is the mean of all units. Of an LSTM the forget gate says what is kept, the input gate what is
    taken in, the cell gate what that is, and the output gate what is given out. Of a GRU the update gate says what is
    kept, the reset gate how much of the past is looked at, and the new gate what is taken in. The model runs on a
    server, and must have been exported with `--inspect`:

    `statewise export runs/NAME --to models --inspect`

    `statewise plot gates NAME "The cat sat on the mat"`
    """
    only_layer = read_number(layer, "layer")
    shown = inspect(model, read_input(text, tokens, series), output, address)
    activations = select_layer(select_rank(shown, 2, "gates", "attention"), only_layer)
    check_panels(2 * len(activations))
    draw(draw_gates, activations, shown, output, "gates")
