"""`statewise plot gradients`: gradients against distance in time, measured and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statewise.errors import ConfigError
from statewise.files import check_picture_path

if TYPE_CHECKING:
    from rich.console import Console

    from statewise_training.gradients.study import Family, Settings

MAX_DISTANCE = 1000


def gradients(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write; the numbers go beside it, as .json.")
    ] = Path("gradients.png"),
    families: Annotated[str, typer.Option(help="Recurrent families, separated by commas.")] = "rnn,lstm,gru",
    distances: Annotated[
        str, typer.Option(help="Numbers of blanks between symbol and answer, separated by commas.")
    ] = "5,10,20,40,80",
    hidden_size: Annotated[int, typer.Option(min=1, max=4096, help="Width of the hidden state.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training for each family and distance.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and sequences.")] = 0,
) -> None:
    """Show why gates exist: gradients against distance in time, for RNN, LSTM and GRU.

    Each family learns to copy: it reads one of eight symbols, then blanks, and at the last blank has to predict the
    symbol. To learn that, it needs a gradient from the answer back to the symbol. In a plain RNN each step back
    multiplies it by the same matrix and by slopes below one, so it vanishes; the gates of LSTM and GRU let the state,
    and with it the gradient, pass nearly unchanged.

    The picture shows the gradient's norm (left) and the accuracy (right) by distance. The defaults take about half a
    minute on one core. For longer distances:

    `statewise plot gradients --distances 20,80,160 --output far.png`
    """
    asked = _read_distances(distances)
    names = list(dict.fromkeys(name.strip() for name in families.split(",")))
    check_picture_path(output, output.with_suffix(".json"))
    # Imported only now: torch takes a second.
    import torch
    from rich.console import Console

    from statewise_training.gradients import copy_task
    from statewise_training.gradients.study import Settings, draw, write_json

    # In so small a layer, threads would wait for each other at every time step.
    torch.set_num_threads(1)
    for name in names:
        copy_task.build(name, hidden_size, seed)
    console = Console()
    settings = Settings(asked, hidden_size, steps, seed)
    measured = _measure_all(names, settings, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(measured, settings, output)
    write_json(measured, settings, output.with_suffix(".json"))
    _report(measured, settings, output, console)


def _measure_all(names: list[str], settings: Settings, console: Console) -> list[Family]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from statewise_training.gradients.study import measure

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    measured = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(names) * len(settings.distances) * settings.num_steps)
        for name in names:
            progress.update(task, description=f"training {name}")

            def tell(distance: int, accuracy: float, name: str = name) -> None:
                console.print(f"{name}: accuracy {accuracy:.3f} at distance {distance}", highlight=False)

            measured.append(measure(name, settings, lambda: progress.advance(task), tell))
    return measured


def _report(measured: list[Family], settings: Settings, output: Path, console: Console) -> None:
    from rich.table import Table

    table = Table("family", "parameters", *map(str, settings.distances), "gradient", title="Accuracy by distance")
    for family in measured:
        accuracies = [f"{family.accuracy[distance]:.2f}" for distance in settings.distances]
        table.add_row(family.name, f"{family.num_parameters:,}", *accuracies, f"{family.gradient_trained[-1]:.1e}")
    console.print(table)
    farthest = settings.distances[-1]
    for line in (
        f"gradient: of the state at distance {farthest}, relative to one step back, after training",
        f"picture: {output}, numbers: {output.with_suffix('.json')}",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _read_distances(text: str) -> tuple[int, ...]:
    distances = set()
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= MAX_DISTANCE:
            raise ConfigError(
                f"distances: {part.strip()!r} is no whole number from 1 to {MAX_DISTANCE}; give some, such as 5,10,20"
            )
        distances.add(int(part))
    return tuple(sorted(distances))
