"""Progress of a run: one bar over all steps on a terminal, a line per validation elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress(ProgressBar):
    """Shows step, losses and time left."""

    def __init__(self, console: Console, num_steps: int) -> None:
        super().__init__()
        self._console = console
        self._num_steps = num_steps
        self._started_at = 0
        self._clock = 0.0
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show no progress; Lightning calls this on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the bar on a terminal."""
        self._started_at, self._clock = trainer.global_step, time.monotonic()
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[losses]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task("", total=self._num_steps, completed=trainer.global_step, losses="")
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, losses=_losses(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line after a validation, where there is no bar."""
        if not self._enabled or self._bar is not None:
            return
        rate = (trainer.global_step - self._started_at) / max(time.monotonic() - self._clock, 1e-9)
        left = (self._num_steps - trainer.global_step) / max(rate, 1e-9)
        self._console.print(
            f"step {trainer.global_step}/{self._num_steps}  {_losses(trainer)}  {rate:.1f} steps/s  {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the bar."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop the bar, to restore the terminal."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _losses(trainer: L.Trainer) -> str:
    names = {"train_loss": "train", "validation_loss": "validation", "validation_accuracy": "accuracy"}
    metrics = trainer.callback_metrics
    return "  ".join(f"{short} {float(metrics[name]):.3f}" for name, short in names.items() if name in metrics)
