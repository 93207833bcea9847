"""The inspections that `plot attention` and `plot gates` draw: their input, and the tensors chosen from them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from statewise.cli.sequences import read_ids
from statewise.client import Client, Inspection, Prompt
from statewise.errors import InvalidRequestError
from statewise.extras import require
from statewise.files import check_picture_path
from statewise.series import read_series

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]

MAX_PANELS = 400
"""The most panels of one picture."""

Model = Annotated[
    str,
    typer.Argument(help="Name of a served model that was exported with --inspect, as `statewise models` gives it."),
]
Text = Annotated[str, typer.Argument(help="Text that the model reads; - takes it from standard input.")]
Tokens = Annotated[str | None, typer.Option(help='Token ids in place of text, as "1,2,3".')]
SeriesFile = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="File in place of text, for a model of real vectors: .csv, .npy or .npz."
    ),
]
Layer = Annotated[str, typer.Option(help="Number of one layer, from 0, or all.")]


def read_number(text: str, name: str) -> int | None:
    """The number of a layer or a head, from 0; None for all. Raises InvalidRequestError."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InvalidRequestError(f"must be a number from 0, or all, got {text!r}", field=f"--{name}")
    return int(text)


def read_input(text: str, tokens: str | None, series: Path | None) -> Prompt:
    """The one sequence that the command line gives. Raises InvalidRequestError, ConfigError."""
    given = [name for name, value in (("text", text), ("--tokens", tokens), ("--series", series)) if value]
    if len(given) != 1:
        raise InvalidRequestError(
            f"give one of text, --tokens and --series, got {' and '.join(given) or 'none'}", field="input"
        )
    if series is not None:
        return read_series(series)
    if tokens is not None:
        return read_ids(tokens, "--tokens")
    return sys.stdin.read() if text == "-" else text


def inspect(model: str, sequence: Prompt, output: Path, address: str) -> Inspection:
    """Inspect a sequence, once it is certain that the picture can be drawn and written. Raises StatewiseError."""
    require("plot")
    check_picture_path(output)
    with Client(address) as client:
        return client.inspect(model, sequence)


def select_rank(shown: Inspection, rank: int, wanted: str, other: str) -> Tensors:
    """The tensors of one rank: attention weights are `[head, query, key]`, activations `[time, unit]`.

    Raises InvalidRequestError where there are none, with the command that draws the `other` kind.
    """
    found = {name: tensor for name, tensor in shown.tensors.items() if tensor.ndim == rank}
    if not found:
        raise InvalidRequestError(
            f"{shown.info.model!r} shows no {wanted} (it shows {', '.join(shown.tensors)}); "
            f"use `statewise plot {other}`",
            field="model",
        )
    return found


def select_layer(tensors: Tensors, layer: int | None) -> Tensors:
    """The tensors of one layer, by their names: `kind.layer`, or more behind another dot.

    Raises InvalidRequestError where the model has no such layer.
    """
    if layer is None:
        return tensors
    layers = {name: name.split(".")[1:2] for name in tensors}
    found = {name: tensor for name, tensor in tensors.items() if layers[name] == [str(layer)]}
    if not found:
        known = ", ".join(dict.fromkeys(number for numbers in layers.values() for number in numbers))
        raise InvalidRequestError(f"the model has no layer {layer} (layers: {known})", field="--layer")
    return found


def select_head(weights: Tensors, head: int) -> Tensors:
    """The weights of one head in every layer that has it. Raises InvalidRequestError where none has."""
    found = {name: heads[head : head + 1] for name, heads in weights.items() if head < len(heads)}
    if not found:
        most = max(map(len, weights.values()))
        raise InvalidRequestError(f"there is no head {head}; the heads are 0 to {most - 1}", field="--head")
    return found


def check_panels(count: int) -> None:
    """Refuse more panels than a picture has. Raises InvalidRequestError."""
    if count > MAX_PANELS:
        raise InvalidRequestError(
            f"all would be {count} panels, more than the {MAX_PANELS} of a picture; choose one", field="--layer"
        )


def draw(painter: Callable[..., None], tensors: Tensors, shown: Inspection, output: Path, what: str) -> None:
    """Draw the tensors under a title that names the model, and print where the picture is."""
    info = shown.info
    painter(tensors, shown.items, output, title=f"{info.model}/{info.version} {info.variant}: {what}")
    typer.echo(f"picture: {output}")
