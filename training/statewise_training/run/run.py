"""Training run, from configuration to checkpoint folder; the same call resumes an interrupted one."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import nn

from statewise.errors import ConfigError, NotFoundError
from statewise.model.spec import ModelSpec
from statewise.plugins import DataSpec, PluginConfig, SequencePlugin, available_plugins, build_module, load_plugin
from statewise_training.checkpoints.weights import load_weights, read_weights, rename
from statewise_training.config import TrainConfig
from statewise_training.config_file import validate
from statewise_training.data.chunks import InOrder
from statewise_training.data.dataset import Dataset, prepare
from statewise_training.data.labelled.sequences import LabelledSequences
from statewise_training.run.evaluation import Summary
from statewise_training.run.finish import Kept, finish, keep_best
from statewise_training.run.label_figures import class_balance
from statewise_training.run.module import TrainingModule
from statewise_training.run.progress import TrainingProgress
from statewise_training.run.quiet import quiet_lightning
from statewise_training.run.run_folder import RunFolder, RunState
from statewise_training.run.trainer import make_rounds, make_trainer

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES}


def train(
    config: TrainConfig, *, resume: bool = False, force: bool = False, console: Console | None = None
) -> Summary | None:
    """Train, or resume an interrupted run; leave a complete run unchanged.

    `resume` requires an existing run, and continues a complete one if its configuration now has another number of
    epochs or steps; `force` starts again. Returns the summary on the first process, else None.
    Raises ConfigError for errors that the user can correct, SystemExit where a signal stopped the run.
    """
    console = console or Console()
    run = RunFolder(config.folder)
    if rank_zero_only.rank != 0:
        # Only the first process locks, clears and writes.
        return _fit(config, run, Console(quiet=True), from_scratch=force)
    with run.lock(), _resource_errors(run.folder):
        if _is_done(run, config, resume=resume, force=force):
            console.print(f"{run.folder} is complete already; --force trains it again", soft_wrap=True)
            return Summary.model_validate_json(run.summary_file.read_bytes())
        return _fit(config, run, console, from_scratch=False)


@contextmanager
def _resource_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "trainer.batch_size: the device has too little memory for this run; "
            "lower it, trainer.sequence_length or the size of the model"
        ) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ConfigError(
            f"cannot write to {error.filename or folder}: {error.strerror}; "
            "mend that and give the same command again: the run goes on from its last checkpoint"
        ) from error


def _is_done(run: RunFolder, config: TrainConfig, *, resume: bool, force: bool) -> bool:
    """Return whether the folder holds this run, complete; otherwise prepare it for training."""
    if force:
        run.clear()
    if run.state is RunState.NEW:
        if resume:
            raise ConfigError(f"--resume: {run.folder} holds no run; leave --resume out to begin one")
        return False
    run.check_same_config(config, length_may_differ=resume or run.state is RunState.UNFINISHED)
    if run.state is RunState.COMPLETE and not (resume and run.length_differs(config)):
        return True
    run.summary_file.unlink(missing_ok=True)
    return False


def _fit(config: TrainConfig, run: RunFolder, console: Console, *, from_scratch: bool) -> Summary | None:
    plugin = _find_plugin(config)
    initial = _read_initial(config)
    dataset = prepare(config)
    settings = plugin_settings(plugin, config, dataset)
    torch.manual_seed(config.trainer.seed)
    model = build_module(plugin, settings)
    _announce(config, dataset, model, console)
    kept = _fit_in_closed_form(plugin, config, settings, dataset, model)
    if kept is not None:
        if rank_zero_only.rank != 0:
            return None
        run.write_config(config)
        return finish(run, config, settings, dataset, kept)
    checkpoint = None if from_scratch else _find_checkpoint(run, console)
    with quiet_lightning():
        trainer = make_trainer(config.trainer, folder=run.folder, checkpoints=run.checkpoints)
        rounds = make_rounds(config.trainer, trainer, dataset.train)
        trainer.callbacks.insert(0, TrainingProgress(console, rounds.num_steps))
        module = TrainingModule(plugin, settings, config, model, rounds.num_steps, dataset.sha256)
        if initial is not None and checkpoint is None:
            load_weights(model, *initial)
        if trainer.is_global_zero:
            run.write_config(config)
        batches = InOrder(dataset.held_out, config.trainer.batch_size)
        trainer.fit(module, rounds, batches, ckpt_path=checkpoint, weights_only=True)
        if not trainer.is_global_zero:
            return None
        return finish(run, config, settings, dataset, keep_best(run, settings, module))


def _fit_in_closed_form(
    plugin: SequencePlugin[Any], config: TrainConfig, settings: PluginConfig, dataset: Dataset, model: nn.Module
) -> Kept | None:
    started = time.monotonic()
    if not plugin.fit(model, settings, dataset.train_documents):
        return None
    if config.initialize_from is not None:
        raise ConfigError("initialize_from: a model fitted in closed form starts from no weights; leave it out")
    return Kept(model, seconds=time.monotonic() - started)


def _find_plugin(config: TrainConfig) -> SequencePlugin[Any]:
    try:
        return load_plugin(config.plugin)
    except NotFoundError as error:
        near = get_close_matches(config.plugin, available_plugins(), n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"plugin: {error}{suggestion}") from error


def plugin_settings(plugin: SequencePlugin[Any], config: TrainConfig, dataset: Dataset) -> PluginConfig:
    """Complete the model section from the data. Raises ConfigError naming the key."""
    raw = plugin.for_data(config.model, dataset.spec)
    for key, value in config.model.items():
        if raw.get(key) != value:
            raise ConfigError(f"model.{key}: is {value}, but the data gives {raw.get(key)}; leave it out to use that")
    settings: PluginConfig = validate(plugin.config_class, raw, source="the configuration", prefix="model")
    spec = plugin.spec(settings)
    _check_fits(config, spec, dataset.spec)
    for part in (dataset.train, dataset.held_out):
        part.check_fits(spec)
    return settings


def _check_fits(config: TrainConfig, model: ModelSpec, data: DataSpec) -> None:
    """Raise ConfigError where the data lacks the family's training targets."""
    gives_value = not model.generates and model.head.kind == "value"
    learns = _task(
        # A model with both a source and an embedding is an autoencoder, which makes its own sources.
        has_source=model.source is not None and model.embedding is None,
        has_labels=not model.generates and not gives_value,
        has_values=gives_value,
    )
    teaches = _task(
        has_source=data.source is not None, has_labels=data.labels is not None, has_values=data.value_size is not None
    )
    if learns != teaches:
        raise ConfigError(
            f"data.kind: {config.data.kind} holds {teaches}, but a {config.plugin} of this configuration learns from "
            f"{learns}; choose another data.kind or another plugin"
        )


def _task(*, has_source: bool, has_labels: bool, has_values: bool) -> str:
    if has_values:
        return "sequences with values"
    if has_labels:
        return "labelled sequences"
    return "pairs of source and target" if has_source else "sequences to go on with"


def _read_initial(config: TrainConfig) -> tuple[dict[str, torch.Tensor], str] | None:
    if config.initialize_from is None:
        return None
    source = str(config.initialize_from.file)
    tensors = read_weights(config.initialize_from.file)
    return rename(tensors, config.initialize_from.rename, source), f"initialize_from.file: {source}"


def _find_checkpoint(run: RunFolder, console: Console) -> Path | None:
    checkpoint, damaged = run.latest_checkpoint()
    for path in damaged:
        console.print(f"{path.name} is damaged; it is removed and passed over", soft_wrap=True)
        path.unlink(missing_ok=True)
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}", highlight=False, soft_wrap=True)
    return checkpoint


def _announce(config: TrainConfig, dataset: Dataset, model: nn.Module, console: Console) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"vocabulary {dataset.item_size}" if dataset.encoder else f"{dataset.item_size} features"
    train, held_out = dataset.train, dataset.held_out
    counted = "sequences" if isinstance(train, LabelledSequences) and train.per_sequence else "items"
    console.print(
        f"{config.name}: {config.plugin}, {parameters:,} parameters, {size}; "
        f"{train.num_predictions:,} {counted} to train on, {held_out.num_predictions:,} held out",
        highlight=False,
        soft_wrap=True,
    )
    if dataset.spec.labels is not None:
        balance = class_balance(train, dataset.spec.labels)
        console.print(f"labels: {balance}", highlight=False, markup=False, soft_wrap=True)
    for note in dataset.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
