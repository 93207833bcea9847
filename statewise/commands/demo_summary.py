"""What the demo found out: one record, one table, one picture."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Self

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from statewise.certificate import Certificate, TokenAgreement

_BASELINES = {"unigram": "unigram baseline", "bigram": "first-order baseline"}


class TrainingFigures(BaseModel):
    """What is read of a training run's summary.json."""

    name: str
    parameters: int
    steps: int
    seconds: float
    held_out_characters: int
    bits_per_character: float
    baselines: dict[str, float]
    """Bits per character on the same text."""


class CertificateFigures(BaseModel):
    """What is shown of a certificate."""

    variant: str
    max_absolute_error: float
    positions_compared: int
    greedy_tokens: TokenAgreement | None
    sampled_tokens: TokenAgreement | None
    batch_invariant: bool
    chunk_invariant: bool


class DemoSummary(BaseModel):
    """`summary.json` of the demo's folder."""

    training: TrainingFigures
    certificate: CertificateFigures
    tokens_per_second: dict[int, float]
    """By number of concurrent streams, through gRPC."""
    reused: list[str]
    """What was there already: model, bundle."""
    bundle: Path
    pictures: list[Path]

    @classmethod
    def of(
        cls,
        training: TrainingFigures,
        certificate: Certificate,
        *,
        bundle: Path,
        tokens_per_second: dict[int, float],
        reused: list[str],
        pictures: list[Path],
    ) -> Self:
        """Put the record together."""
        figures = CertificateFigures(
            variant=certificate.variant,
            max_absolute_error=certificate.outputs.max_absolute_error,
            positions_compared=certificate.outputs.positions_compared,
            greedy_tokens=certificate.greedy_tokens,
            sampled_tokens=certificate.sampled_tokens,
            batch_invariant=certificate.batch_invariant,
            chunk_invariant=certificate.chunk_invariant,
        )
        return cls(
            training=training,
            certificate=figures,
            tokens_per_second=tokens_per_second,
            reused=reused,
            bundle=bundle.absolute(),
            pictures=[path.absolute() for path in pictures],
        )

    @property
    def bits(self) -> dict[str, float]:
        """Held-out bits per character by predictor, the worst first, the model last."""
        known = {title: self.training.baselines[name] for name, title in _BASELINES.items()}
        return known | {self.training.name: self.training.bits_per_character}


def report(summary: DemoSummary, run: Path, models: Path, console: Console) -> None:
    """Print the summary and what to try next."""
    console.print()
    console.print(_table(summary))
    console.print(f"bundle:    {summary.bundle}")
    for path in summary.pictures:
        console.print(f"picture:   {path}")
    if summary.reused:
        console.print(f"reused:    {' and '.join(summary.reused)}; all of it was served and measured anew")
    name, program = summary.training.name, _program()
    console.print("\n[bold]Try next[/] (each on its own terminal where it goes on)")
    for command in (
        f"verify {models / name}",
        f"serve --models {models}",
        f'generate {name} "Lists are " --temperature 0.8',
        f"train {run / 'config.yaml'} --set model.hidden_size=512 --output runs/larger",
    ):
        console.print(f"  {program} {command}")


def _program() -> str:
    """The command as the user's shell finds it: by its path, where its environment is not the active one."""
    beside = Path(sys.executable).with_name("statewise")
    found = shutil.which("statewise")
    is_active = not beside.exists() or (found is not None and beside.samefile(found))
    return "statewise" if is_active else os.path.relpath(beside)


def _table(summary: DemoSummary) -> Table:
    training = summary.training
    table = Table("", "", show_header=False, title="Summary", title_style="bold")
    table.add_row("[bold]model[/]", f"{training.name}, {training.parameters:,} parameters")
    table.add_row("  trained for", f"{training.steps} steps, {training.seconds:.0f} s")
    characters = f"{training.held_out_characters:,} characters"
    table.add_row("[bold]held-out bits per character[/]", characters)
    for title, bits in summary.bits.items():
        table.add_row(f"  {title}", f"{bits:.3f}", style="bold green" if title == training.name else "")
    _add_certificate(table, summary.certificate)
    table.add_row("[bold]tokens per second through gRPC[/]", "")
    for streams, speed in summary.tokens_per_second.items():
        table.add_row(f"  {_streams(streams)}", f"{speed:,.0f}")
    return table


def _add_certificate(table: Table, figures: CertificateFigures) -> None:
    table.add_row(f"[bold]certificate of {figures.variant}[/]", "[green]passed[/]")
    error = f"{figures.max_absolute_error:.1e} over {figures.positions_compared:,} positions"
    table.add_row("  largest error against PyTorch", error)
    for title, tokens in (("greedy", figures.greedy_tokens), ("sampled", figures.sampled_tokens)):
        if tokens is not None:
            table.add_row(f"  {title} tokens equal", f"{tokens.equal:,} of {tokens.compared:,}")
    table.add_row("  a row alone = in a full batch", "bit for bit" if figures.batch_invariant else "no")
    table.add_row("  prompt in chunks = whole", "within limits" if figures.chunk_invariant else "no")


def draw(summary: DemoSummary, path: Path) -> None:
    """Draw bits per character and tokens per second as bars, into a PNG."""
    # Here: matplotlib belongs to the train extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    bits = summary.bits
    bars = left.bar(list(bits), list(bits.values()), color=["0.7"] * (len(bits) - 1) + ["tab:green"])
    left.bar_label(bars, fmt="%.2f")
    left.set(title="Held-out text", ylabel="bits per character (lower is better)")
    speeds = summary.tokens_per_second
    bars = right.bar([_streams(number) for number in speeds], list(speeds.values()), color="tab:blue")
    right.bar_label(bars, fmt="{:,.0f}")
    right.set(title="Streaming through gRPC", ylabel="tokens per second")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    figure.savefig(path, format="png", dpi=120)


def _streams(number: int) -> str:
    return "1 stream" if number == 1 else f"{number} streams"
