"""LightningModule that unrolls a plugin's step function over chunks, from zero state."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from statewise.errors import ConfigError, DivergedError
from statewise.model.spec import ModelSpec
from statewise.modules import Embeds, require
from statewise.plugins import PluginConfig, SequencePlugin
from statewise_training.config import ScheduleConfig, TrainConfig
from statewise_training.data.chunks import Batch
from statewise_training.families.shared.state import encoded_state, zero_state
from statewise_training.run.label_figures import label_accuracy

DATA_KEY = "statewise_data_sha256"
SECONDS_KEY = "statewise_seconds"


def unroll(module: nn.Module, spec: ModelSpec, items: Tensor, state: tuple[Tensor, ...] | None = None) -> Tensor:
    """Run items `[row, time]` or `[row, time, features]` from a state, or from zeros; outputs `[row, time, ...]`.

    Right padding is processed like real items: it comes after all real items, so no output that counts
    depends on it, and whole rows run faster than ragged ones.
    """
    rows, time = items.shape[:2]
    parameter = next(module.parameters())
    lengths = torch.full((rows,), time, device=items.device)
    if state is None:
        state = zero_state(spec, rows, time, dtype=parameter.dtype, device=items.device)
    hidden, _ = module(_cast(items, parameter.dtype), lengths, state)
    output: Tensor = module.head(hidden)
    return output


def run_batch(module: nn.Module, spec: ModelSpec, batch: Batch) -> Tensor:
    """Outputs for a batch: for every item from the first state on, or, without state, for whole sequences."""
    dtype = next(module.parameters()).dtype
    if not spec.generates:
        output: Tensor = module.head(module(_cast(batch.items, dtype), batch.lengths, ())[0])
        return output
    if spec.source is None:
        return unroll(module, spec, batch.items)
    source, source_lengths = _source(module, batch)
    state = encoded_state(module, spec, _cast(source, dtype), source_lengths, batch.items.shape[1])
    return unroll(module, spec, batch.items, state)


def _source(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sources of the batch and their lengths; an autoencoder makes its sources from the items."""
    if batch.source is not None:
        return batch.source, batch.source_lengths
    return require(module, Embeds).embed(batch.items, batch.lengths)[:, None], torch.ones_like(batch.lengths)


def _cast(items: Tensor, dtype: torch.dtype) -> Tensor:
    return items.to(dtype) if items.is_floating_point() else items


class TrainingModule(L.LightningModule):
    """Loss, optimiser and schedule around the module that a plugin builds."""

    def __init__(
        self,
        plugin: SequencePlugin[Any],
        settings: PluginConfig,
        config: TrainConfig,
        model: nn.Module,
        num_steps: int,
        data_sha256: str,
    ) -> None:
        super().__init__()
        self.plugin = plugin
        self.settings = settings
        self.spec = plugin.spec(settings)
        self.model = model
        self.config = config
        self.num_steps = num_steps
        self.data_sha256 = data_sha256
        self._seconds_before = 0.0
        self._clock = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far in seconds, earlier attempts included."""
        return self._seconds_before + (time.monotonic() - self._clock if self._clock else 0.0)

    def on_train_start(self) -> None:
        """Start the clock."""
        self._clock = time.monotonic()

    def training_step(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, per item."""
        # Dropout also depends only on seed, device and step, so a resumed run equals an unbroken one.
        torch.manual_seed(_mix(self.config.trainer.seed, self.global_rank, self.global_step))
        loss = self.plugin.training_loss(self.model, self.settings, batch, self._run)
        if self.global_step % self.config.trainer.log_every == 0:
            self._check_finite(loss, "training")
        self.log("train_loss", loss.detach(), batch_size=len(batch.items))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Log the mean loss over all held-out items, equally weighted, and the accuracy of labels."""
        output = self._run(batch)
        loss = self.plugin.loss(self.settings, output, batch.targets, batch.mask)
        self.log("validation_loss", loss, batch_size=batch.num_predictions, on_epoch=True)
        if self.spec.head.kind == "labels":
            accuracy = label_accuracy(output, batch)
            self.log("validation_accuracy", accuracy, batch_size=batch.num_predictions, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """End a run that has diverged."""
        self._check_finite(self.trainer.callback_metrics["validation_loss"], "validation")

    def _run(self, batch: Batch) -> Tensor:
        return run_batch(self.model, self.spec, batch)

    def _check_finite(self, loss: Tensor, name: str) -> None:
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"training has diverged: the {name} loss is {loss.item()} at step {self.global_step}; "
                "lower optimizer.learning_rate, or set trainer.gradient_clip or schedule.warmup_steps"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW, with a schedule that steps with it."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {
                "params": [parameter for parameter in parameters if parameter.ndim >= 2],
                "weight_decay": self.config.optimizer.weight_decay,
            },
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.config.optimizer.learning_rate, betas=self.config.optimizer.betas)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.num_steps, self.config.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the data's fingerprint and the training time."""
        checkpoint[DATA_KEY] = self.data_sha256
        checkpoint[SECONDS_KEY] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with different data."""
        if checkpoint.get(DATA_KEY) != self.data_sha256:
            raise ConfigError(
                "the data has changed since this run began, so it cannot be resumed; "
                "start again with --force, or elsewhere with --output"
            )
        self._seconds_before = checkpoint[SECONDS_KEY]


def learning_rate_factor(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor of the learning rate at a step, 0 to 1."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    progress = min(1.0, (step - schedule.warmup_steps) / max(1, num_steps - schedule.warmup_steps))
    remaining = 1.0 - progress if schedule.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * remaining


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
