"""`statewise plot attention`: the attention weights of a served Transformer, as a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from statewise.cli.generate import Address
from statewise.cli.plot.heat_maps import draw_attention
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
    select_head,
    select_layer,
    select_rank,
)
from statewise.client import DEFAULT_ADDRESS


def attention(
    model: Model,
    text: Text = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("attention.png"),
    layer: Layer = "all",
    head: Annotated[str, typer.Option(help="Number of one head, from 0, or all.")] = "all",
    tokens: Tokens = None,
    series: SeriesFile = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Show what each head of a Transformer attends to: a heat map for each layer and head.

    A line of a heat map is one item of the sequence, and its colours say from which items it takes what it needs: the
    weights of a line add up to 1. The model runs on a server, and must have been exported with `--inspect`:

    `statewise export runs/NAME --to models --inspect`

    `statewise plot attention NAME "The cat sat on the mat" --layer 0`
    """
    only_layer, only_head = read_number(layer, "layer"), read_number(head, "head")
    shown = inspect(model, read_input(text, tokens, series), output, address)
    weights = select_layer(select_rank(shown, 3, "attention weights", "gates"), only_layer)
    if only_head is not None:
        weights = select_head(weights, only_head)
    check_panels(sum(map(len, weights.values())))
    draw(partial(draw_attention, first_head=only_head or 0), weights, shown, output, "attention")
