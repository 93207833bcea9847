"""`statewise train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from statewise_training.run.evaluation import Summary


def train(
    config: Annotated[
        Path,
        typer.Argument(help="YAML file that describes the run; see examples/configs.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one setting, such as trainer.max_epochs=5; may be given again. The value is YAML.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; runs/NAME where absent.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Require a run to resume. An unfinished run is resumed without this option; a complete one "
            "is trained on with it and a larger trainer.max_epochs or max_steps.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove the run in the output folder and start again.")
    ] = False,
) -> None:
    """Train a sequence model and leave a checkpoint folder, ready for `statewise export`.

    Give the same command again to resume an interrupted run.

    The folder holds the weights, the tokenizer, the configuration, the log, a picture of it and a summary.

    Exits with 1 where the model is worse than a prediction that ignores the input; trainer.allow_diverged accepts that.
    """
    from statewise_training.config_file import load_config

    settings = load_config(config, overrides or [], output)
    if resume and force:
        raise typer.BadParameter("--resume continues a run, --force removes it: give one of them")
    # Imported only now: torch and Lightning take seconds, and an error in the file is reported at once.
    from rich.console import Console

    from statewise_training.run import run
    from statewise_training.run.divergence import check_learnt

    console = Console()
    try:
        summary = run.train(settings, resume=resume, force=force, console=console)
    except SystemExit as stop:
        console.print("stopped; give the same command again to go on from the last checkpoint", soft_wrap=True)
        raise typer.Exit(130) from stop
    if summary is not None:
        _report(summary, settings.folder, console)
        check_learnt(summary, settings, console)


def _report(summary: Summary, folder: Path, console: Console) -> None:
    how = f"(step {summary.best_step} of {summary.steps}), {summary.steps_per_second:.1f} steps/s"
    console.print(
        f"{summary.name}: validation loss {summary.validation_loss:.4f} {summary.unit} "
        f"{how if summary.steps else '(fitted in closed form)'}, {summary.seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    if summary.bits_per_character is not None:
        against = ", ".join(f"{name} {bits:.3f}" for name, bits in summary.baselines.items())
        console.print(
            f"{summary.bits_per_character:.3f} bits per character, held out (baselines: {against})",
            highlight=False,
            soft_wrap=True,
        )
    if summary.accuracy is not None:
        against = ", ".join(f"{name.replace('_', ' ')} {share:.3f}" for name, share in summary.baselines.items())
        console.print(
            f"accuracy {summary.accuracy:.3f}, macro F1 {summary.macro_f1:.3f}, held out (baselines: {against})",
            highlight=False,
            soft_wrap=True,
        )
    if summary.exact_match is not None:
        share = f"{summary.exact_match:.1%} of {summary.exact_match_pairs:,} held-out targets exactly right (greedy)"
        console.print(share, highlight=False)
    console.print(f"checkpoint: {folder}", highlight=False, soft_wrap=True)
