"""The end of a run: the best weights, checkpoint, log, pictures and summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from statewise.bundles.manifest import SpecialTokens
from statewise.errors import ConfigError
from statewise.files import write_atomically
from statewise.plugins import PluginConfig
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.checkpoints.held_out import MAX_ITEMS, Items, Pair
from statewise_training.checkpoints.weights import load_weights
from statewise_training.config import TrainConfig
from statewise_training.data.dataset import Dataset
from statewise_training.data.pairs.batches import Pairs
from statewise_training.plots.confusions import plot_confusion
from statewise_training.plots.curves import collect, plot, write_csv
from statewise_training.run.evaluation import Summary, measure
from statewise_training.run.module import TrainingModule
from statewise_training.run.run_folder import RunFolder


@dataclass(frozen=True)
class Kept:
    """Kept weights of a run, with its steps and time."""

    model: nn.Module
    seconds: float
    best_step: int = 0
    """Step of the kept weights; 0, like `steps`, for a fit in closed form."""
    steps: int = 0


def finish(run: RunFolder, config: TrainConfig, settings: PluginConfig, dataset: Dataset, kept: Kept) -> Summary:
    """Write the weights, the log, its picture, and last the summary, which marks the run as complete."""
    _save(run, config, settings, dataset, kept.model)
    figures = measure(load_checkpoint(run.folder), dataset, config.trainer.batch_size)
    rows = collect(run.logs) or [{"step": 0, "validation_loss": figures["validation_loss"]}]
    write_csv(rows, run.metrics_file)
    summary = Summary(
        name=config.name,
        plugin=config.plugin,
        steps=kept.steps,
        best_step=kept.best_step,
        seconds=round(kept.seconds, 2),
        steps_per_second=round(kept.steps / max(kept.seconds, 1e-9), 2),
        initialized_from=str(config.initialize_from.file) if config.initialize_from else None,
        **figures,
    )
    plot(rows, run.picture_file, title=config.name, unit=summary.unit, best_step=kept.best_step)
    if summary.confusion is not None:
        plot_confusion(summary.confusion, tuple(summary.labels or ()), run.confusion_file, title=config.name)
    write_atomically(run.summary_file, summary.model_dump_json(indent=2) + "\n")
    return summary


def keep_best(run: RunFolder, settings: PluginConfig, module: TrainingModule) -> Kept:
    """Return the weights of the lowest validation loss, after the trainer's last step."""
    path, state = _best_state(run, module.trainer)
    prefix = "model."
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in state["state_dict"].items() if name.startswith(prefix)
    }
    model = module.plugin.build(settings)
    load_weights(model, weights, str(path))
    return Kept(model, module.seconds, best_step=int(state["global_step"]), steps=module.trainer.global_step)


def _save(run: RunFolder, config: TrainConfig, settings: PluginConfig, dataset: Dataset, model: nn.Module) -> None:
    encoder = dataset.encoder
    if encoder is not None:
        write_atomically(run.tokenizer_file, encoder.tokenizer.to_str(pretty=True))
    save_checkpoint(
        run.folder,
        name=config.name,
        plugin_name=config.plugin,
        config=settings,
        module=model,
        # An encoder reads whole texts, without a start or an end; save_checkpoint adds the tokens around them.
        special_tokens=encoder.special_tokens if encoder and not dataset.is_labelled else SpecialTokens(),
        tokenizer_file=run.tokenizer_file if encoder else None,
        standardization=dataset.standardization,
        held_out=_held_out(dataset),
    )


def _held_out(dataset: Dataset) -> Items | list[Pair]:
    """Held-out data, in the series' own units."""
    if isinstance(dataset.held_out, Pairs):
        return list(zip(dataset.held_out.sources, dataset.held_out.documents, strict=True))
    items = np.concatenate(dataset.held_out_documents)[:MAX_ITEMS]
    scale = dataset.standardization
    if scale is None:
        return items
    raw: Items = items * np.array(scale.deviation, np.float32) + np.array(scale.mean, np.float32)
    return raw


def _best_state(run: RunFolder, trainer: L.Trainer) -> tuple[Path, dict[str, Any]]:
    """Find the checkpoint with the lowest validation loss; if that is damaged or lost, the latest one."""
    paths = [
        Path(callback.best_model_path)
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor == "validation_loss" and callback.best_model_path
    ]
    for path in [*paths, *run.list_checkpoints()]:
        state = run.read_checkpoint(path)
        if state is not None:
            return path, state
    raise ConfigError(f"no checkpoint in {run.checkpoints} can be read; train again with --force")
