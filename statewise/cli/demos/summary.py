"""Reports of the demos: figures of training and certificate, a table, next steps."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from statewise.bundles.certificate import Certificate
from statewise.bundles.figures import TokenAgreement


class TrainingFigures(BaseModel):
    """Figures read from a training run's summary.json."""

    name: str
    parameters: int
    steps: int
    seconds: float
    validation_loss: float
    held_out_characters: int | None = None
    bits_per_character: float | None = None
    baselines: dict[str, float] = {}
    """By the same measure: bits per character for text, else the validation loss."""

    @classmethod
    def of_run(cls, run: Path) -> Self:
        """Read the summary of a complete run."""
        return cls.model_validate_json((run / "summary.json").read_bytes())


class CertificateFigures(BaseModel):
    """Figures shown from a certificate."""

    variant: str
    max_absolute_error: float
    positions_compared: int
    greedy_tokens: TokenAgreement | None
    sampled_tokens: TokenAgreement | None
    labels: TokenAgreement | None = None
    """Of whole sequences."""
    sampled_vectors: TokenAgreement | None = None
    batch_invariant: bool
    chunk_invariant: bool | None
    """None where nothing is read in chunks."""

    @classmethod
    def of(cls, certificate: Certificate) -> Self:
        """Take what is shown."""
        steps = any(case.graph == "step" for case in certificate.cases)
        return cls(
            variant=certificate.variant,
            max_absolute_error=certificate.outputs.max_absolute_error,
            positions_compared=certificate.outputs.positions_compared,
            greedy_tokens=certificate.greedy_tokens,
            sampled_tokens=certificate.sampled_tokens,
            sampled_vectors=certificate.sampled_vectors,
            batch_invariant=certificate.batch_invariant,
            labels=next((graph.labels for graph in certificate.sequences if graph.labels is not None), None),
            chunk_invariant=certificate.chunk_invariant if steps else None,
        )


class DemoSummary(BaseModel):
    """Content of every demo's `summary.json` beside its own figures."""

    certificate: CertificateFigures
    """Certificate of the main model; no other model is served without one either."""
    reused: list[str]
    """Steps whose results existed already."""
    bundle: Path
    pictures: list[Path]


def summary_table(training: TrainingFigures) -> Table:
    """A table of titles and figures, which begins with the training run."""
    table = Table("", "", show_header=False, title="Summary", title_style="bold")
    table.add_row("[bold]model[/]", f"{training.name}, {training.parameters:,} parameters")
    table.add_row("  trained for", f"{training.steps} steps, {training.seconds:.0f} s")
    return table


def add_certificate(table: Table, figures: CertificateFigures) -> None:
    """Add rows on a certificate."""
    table.add_row(f"[bold]certificate of {figures.variant}[/]", "[green]passed[/]")
    error = f"{figures.max_absolute_error:.1e} over {figures.positions_compared:,} positions"
    table.add_row("  largest error against PyTorch", error)
    agreements = {
        "greedy tokens": figures.greedy_tokens,
        "sampled tokens": figures.sampled_tokens,
        "sampled vectors": figures.sampled_vectors,
        "labels": figures.labels,
    }
    for title, found in agreements.items():
        if found is not None:
            table.add_row(f"  {title} equal", f"{found.equal:,} of {found.compared:,}")
    table.add_row("  a row alone = in a full batch", "bit for bit" if figures.batch_invariant else "no")
    if figures.chunk_invariant is not None:
        table.add_row("  prompt in chunks = whole", "within limits" if figures.chunk_invariant else "no")


def report(console: Console, summary: DemoSummary, tables: Sequence[Table], commands: Sequence[str]) -> None:
    """Print tables, what was made and where it lies, and commands of `statewise` to try next."""
    for table in tables:
        console.print()
        console.print(table)
    for title, paths in (("bundle", [summary.bundle]), ("picture", summary.pictures)):
        for path in paths:
            console.print(f"{title + ':':<9}  {path}")
    if summary.reused:
        reused = f"{len(summary.reused)} models and bundles"
        console.print(f"reused:    {reused} that were there; the figures of speed are new")
    console.print("\n[bold]Try next[/] (each on its own terminal where it goes on)")
    for command in commands:
        console.print(f"  {_program()} {command}")


def _program() -> str:
    """The command as the user's shell finds it: by its path, where its environment is not the active one."""
    beside = Path(sys.executable).with_name("statewise")
    found = shutil.which("statewise")
    is_active = not beside.exists() or (found is not None and beside.samefile(found))
    return "statewise" if is_active else os.path.relpath(beside)
