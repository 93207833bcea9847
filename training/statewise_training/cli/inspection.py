"""`statewise plot attention` and `statewise plot gates`: what a served model shows of a sequence, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from statewise.client import DEFAULT_ADDRESS, Client
from statewise.errors import InvalidRequestError
from statewise_training.files import check_picture_path

if TYPE_CHECKING:
    from statewise.client import Inspection, Prompt

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]

MAX_PANELS = 400

ModelArgument = Annotated[
    str,
    typer.Argument(help="Name of a served model that was exported with --inspect, as `statewise models` gives it."),
]
TextArgument = Annotated[str, typer.Argument(help="Text that the model reads; - takes it from standard input.")]
TokensOption = Annotated[str | None, typer.Option(help='Token ids in place of text, as "1,2,3".')]
SeriesOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="CSV or .npy file in place of text, for a model of real vectors."),
]
LayerOption = Annotated[str, typer.Option(help="Number of one layer, from 0, or all.")]
AddressOption = Annotated[str, typer.Option(envvar="STATEWISE_ADDRESS", help="host:port of the server.")]


def attention(
    model: ModelArgument,
    text: TextArgument = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("attention.png"),
    layer: LayerOption = "all",
    head: Annotated[str, typer.Option(help="Number of one head, from 0, or all.")] = "all",
    tokens: TokensOption = None,
    series: SeriesOption = None,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Show what each head of a Transformer attends to: a heat map for each layer and head.

    A line of a heat map is one item of the sequence, and its colours say from which items it takes what it needs: the
    weights of a line add up to 1. The model runs on a server, and must have been exported with `--inspect`:

    `statewise export runs/NAME --to models --inspect`

    `statewise plot attention NAME "The cat sat on the mat" --layer 0`
    """
    only_layer, only_head = _number(layer, "layer"), _number(head, "head")
    shown = _inspect(model, _input(text, tokens, series), output, address)
    weights = _of_layer(_tensors(shown, 3, "attention weights", "gates"), only_layer)
    if only_head is not None:
        weights = _of_head(weights, only_head)
    _check_panels(sum(map(len, weights.values())))
    from statewise_training.plots.inspection import draw_attention

    _draw(partial(draw_attention, first_head=only_head or 0), weights, shown, output, "attention")


def gates(
    model: ModelArgument,
    text: TextArgument = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("gates.png"),
    layer: LayerOption = "all",
    tokens: TokensOption = None,
    series: SeriesOption = None,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Show how the gates of an LSTM or a GRU stand while it reads: open (1) or shut (0), for every unit over time.

    Under each heat map is the mean of all units. Of an LSTM the forget gate says what is kept, the input gate what is
    taken in, the cell gate what that is, and the output gate what is given out. Of a GRU the update gate says what is
    kept, the reset gate how much of the past is looked at, and the new gate what is taken in. The model runs on a
    server, and must have been exported with `--inspect`:

    `statewise export runs/NAME --to models --inspect`

    `statewise plot gates NAME "The cat sat on the mat"`
    """
    only_layer = _number(layer, "layer")
    shown = _inspect(model, _input(text, tokens, series), output, address)
    activations = _of_layer(_tensors(shown, 2, "gates", "attention"), only_layer)
    _check_panels(2 * len(activations))
    from statewise_training.plots.inspection import draw_gates

    _draw(draw_gates, activations, shown, output, "gates")


def _number(text: str, name: str) -> int | None:
    """A number from 0; None for all."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InvalidRequestError(f"must be a number from 0, or all, got {text!r}", field=f"--{name}")
    return int(text)


def _input(text: str, tokens: str | None, series: Path | None) -> Prompt:
    given = [name for name, value in (("text", text), ("--tokens", tokens), ("--series", series)) if value]
    if len(given) != 1:
        raise InvalidRequestError(
            f"give one of text, --tokens and --series, got {' and '.join(given) or 'none'}", field="input"
        )
    if series is not None:
        from statewise_training.config import SeriesData
        from statewise_training.data.corpus import read_series

        return read_series(SeriesData(kind="series", files=(str(series),)))[0]
    if tokens is None:
        return sys.stdin.read() if text == "-" else text
    try:
        return [int(token) for token in tokens.split(",") if token.strip()]
    except ValueError as error:
        raise InvalidRequestError(f'must be ids with commas, as "1,2,3", got {tokens!r}', field="--tokens") from error


def _inspect(model: str, sequence: Prompt, output: Path, address: str) -> Inspection:
    check_picture_path(output)
    with Client(address) as client:
        return client.inspect(model, sequence)


def _tensors(shown: Inspection, rank: int, wanted: str, other: str) -> Tensors:
    """Those of one rank: attention weights are `[head, query, key]`, activations `[time, unit]`."""
    found = {name: tensor for name, tensor in shown.tensors.items() if tensor.ndim == rank}
    if not found:
        raise InvalidRequestError(
            f"{shown.info.model!r} shows no {wanted} (it shows {', '.join(shown.tensors)}); "
            f"use `statewise plot {other}`",
            field="model",
        )
    return found


def _of_layer(tensors: Tensors, layer: int | None) -> Tensors:
    """Those of one layer, by their names: `kind.layer`, or more behind another dot."""
    if layer is None:
        return tensors
    layers = {name: name.split(".")[1:2] for name in tensors}
    found = {name: tensor for name, tensor in tensors.items() if layers[name] == [str(layer)]}
    if not found:
        known = ", ".join(dict.fromkeys(number for numbers in layers.values() for number in numbers))
        raise InvalidRequestError(f"the model has no layer {layer} (layers: {known})", field="--layer")
    return found


def _of_head(weights: Tensors, head: int) -> Tensors:
    found = {name: heads[head : head + 1] for name, heads in weights.items() if head < len(heads)}
    if not found:
        most = max(map(len, weights.values()))
        raise InvalidRequestError(f"there is no head {head}; the heads are 0 to {most - 1}", field="--head")
    return found


def _check_panels(count: int) -> None:
    if count > MAX_PANELS:
        raise InvalidRequestError(
            f"all would be {count} panels, more than the {MAX_PANELS} of a picture; choose one", field="--layer"
        )


def _draw(draw: Callable[..., None], tensors: Tensors, shown: Inspection, output: Path, what: str) -> None:
    info = shown.info
    draw(tensors, shown.items, output, title=f"{info.model}/{info.version} {info.variant}: {what}")
    typer.echo(f"picture: {output}")
