"""Lightning Trainer of a run, and the division of its steps into rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from statewise.errors import ConfigError
from statewise.files import atomic_file
from statewise_training.config import TrainerConfig
from statewise_training.data.chunks import Chunks, Rounds, TrainingStream

DEFAULT_EPOCHS = 10

# A round ends with a validation, then a checkpoint. The two latest are kept, in case one is damaged.
_BEST = {"filename": "best-{step}", "monitor": "validation_loss", "mode": "min", "save_top_k": 1}
_LATEST = {"filename": "latest-{step}", "monitor": "step", "mode": "max", "save_top_k": 2}


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that gives a file its name only once it is complete on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)


class _Log(CSVLogger):
    """Log that is flushed to disk with every checkpoint."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.save()


def make_trainer(settings: TrainerConfig, *, folder: Path, checkpoints: Path) -> L.Trainer:
    """Make a Trainer that saves after every epoch. Raises ConfigError for devices that this machine lacks."""
    callbacks: list[L.Callback] = [
        ModelCheckpoint(checkpoints, save_on_train_epoch_end=True, enable_version_counter=False, **kept)
        for kept in (_BEST, _LATEST)
    ]
    if settings.early_stopping_patience:
        callbacks.append(EarlyStopping("validation_loss", patience=settings.early_stopping_patience))
    try:
        return L.Trainer(
            max_epochs=1,  # set by make_rounds, which needs the number of devices
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=settings.precision,
            gradient_clip_val=settings.gradient_clip,
            log_every_n_steps=settings.log_every,
            callbacks=callbacks,
            logger=_Log(folder, name="logs"),
            plugins=[_AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        names = ("accelerator", "devices", "strategy", "precision")
        wanted = ", ".join(f"{name} {getattr(settings, name)}" for name in names)
        raise ConfigError(f"trainer: {wanted} cannot be had here: {error}") from error


def make_rounds(settings: TrainerConfig, trainer: L.Trainer, chunks: Chunks) -> Rounds:
    """Divide the run's steps into rounds; to Lightning each is an epoch.

    Checkpoints are then always written between two epochs, where resuming is exact.
    """
    stream = TrainingStream(
        chunks,
        batch_size=settings.batch_size,
        seed=settings.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    rounds = Rounds(
        stream,
        steps_per_round=settings.validation_every or max(1, round(stream.steps_per_epoch)),
        num_steps=_num_steps(settings, stream),
        current_step=lambda: trainer.global_step,
    )
    trainer.fit_loop.max_epochs = rounds.num_rounds
    return rounds


def _num_steps(settings: TrainerConfig, stream: TrainingStream) -> int:
    if settings.max_epochs is None and settings.max_steps is not None:
        return settings.max_steps
    steps = math.ceil((settings.max_epochs or DEFAULT_EPOCHS) * stream.steps_per_epoch)
    return min(steps, settings.max_steps or steps)
