"""Output folder of a run: its files, the state of the run, and a lock for one process."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml

from statewise.errors import ConfigError
from statewise.files import write_atomically
from statewise.locks import locked_folder
from statewise_training.checkpoints.checkpoint import CHECKPOINT_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from statewise_training.config import TrainConfig
from statewise_training.config_file import load_config

_LENGTH = {"trainer.max_epochs", "trainer.max_steps", "trainer.early_stopping_patience"}
"""Settings that may change when a run is resumed."""
_NOT_COMPARED = {
    "output",
    "trainer.allow_diverged",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every",
}
"""Settings without effect on the weights: the run's location, logging and verdict."""


class RunState(Enum):
    """Progress of a run."""

    NEW = "new"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


class RunFolder:
    """Files of a run, by name, and their state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.summary_file = folder / "summary.json"
        self.metrics_file = folder / "metrics.csv"
        self.picture_file = folder / "loss.png"
        self.confusion_file = folder / "confusion.png"
        self.tokenizer_file = folder / TOKENIZER_FILE
        self.checkpoints = folder / "checkpoints"
        self.logs = folder / "logs"

    def lock(self) -> AbstractContextManager[None]:
        """Lock the folder for this process. Raises ConfigError where another process trains in it."""
        taken = f"another process trains in {self.folder}; wait for it, or choose another --output"
        return locked_folder(self.folder, "output", taken=taken)

    @property
    def state(self) -> RunState:
        """State of the run, by its files: `config.yaml` is written first, `summary.json` last."""
        if self.summary_file.exists():
            return RunState.COMPLETE
        return RunState.UNFINISHED if self.config_file.exists() else RunState.NEW

    def write_config(self, config: TrainConfig) -> None:
        """Record the configuration, defaults and overrides included."""
        content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomically(self.config_file, content)

    def check_same_config(self, config: TrainConfig, *, length_may_differ: bool) -> None:
        """Raise ConfigError where the folder's run was started with other settings."""
        changes = self._changes(config)
        if length_may_differ:
            changes = {key: change for key, change in changes.items() if key not in _LENGTH}
        if changes:
            described = ", ".join(f"{key}: {before!r} there, {now!r} now" for key, (before, now) in changes.items())
            raise ConfigError(
                f"output: {self.folder} holds a run with other settings ({described}); "
                "choose another --output, start it again with --force, "
                "or, where only its length differs, train on with --resume"
            )

    def length_differs(self, config: TrainConfig) -> bool:
        """Whether the folder's run was configured with another length."""
        return bool(self._changes(config).keys() & _LENGTH)

    def _changes(self, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
        before, now = _flatten(load_config(self.config_file)), _flatten(config)
        keys = [key for key in sorted(before.keys() | now.keys()) if key not in _NOT_COMPARED]
        return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}

    def clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        for folder in (self.checkpoints, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        for name in (CHECKPOINT_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
            (self.folder / name).unlink(missing_ok=True)
        pictures = (self.picture_file, self.confusion_file)
        for path in (self.summary_file, self.metrics_file, *pictures, self.config_file):
            path.unlink(missing_ok=True)

    def list_checkpoints(self) -> list[Path]:
        """List all training checkpoints, the newest first."""
        return sorted(self.checkpoints.glob("*.ckpt"), key=_step, reverse=True)

    def read_checkpoint(self, path: Path) -> dict[str, Any] | None:
        """Read a training checkpoint; None if it is damaged."""
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many types for a damaged file
            return None
        return content

    def latest_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """Find the newest readable checkpoint, if any, and the damaged ones that were skipped.

        Raises ConfigError if there are checkpoints but none is readable.
        """
        damaged: list[Path] = []
        for path in self.list_checkpoints():
            if self.read_checkpoint(path) is not None:
                return path, damaged
            damaged.append(path)
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise ConfigError(f"no checkpoint in {self.checkpoints} can be read (damaged: {names}); start with --force")
        return None, []


def _step(path: Path) -> tuple[int, str]:
    """Sort key of `KIND-step=N.ckpt`."""
    digits = path.stem.rpartition("=")[2]
    return int(digits) if digits.isdigit() else -1, path.name


def _flatten(config: TrainConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, member in value.items():
                visit(member, f"{key}.{name}" if key else name)
        else:
            flat[key] = value

    visit(config.model_dump(mode="json"), "")
    return flat
